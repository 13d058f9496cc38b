"""`python -m rmat_hf`, where the command `rmat` is not found."""

from rmat_hf.cli import main

if __name__ == "__main__":
    main()
