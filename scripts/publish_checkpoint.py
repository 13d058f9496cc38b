"""Publish a model of the package as a repository that loads without the package.

    python scripts/publish_checkpoint.py rmat-small USER/rmat-small [--private] [--dry-run]

What was pretrained here has no secrets: its metrics, arguments and plots go along.
"""

import argparse

from rmat_hf import list_checkpoints, push_folder


def main() -> None:
    """Push the model that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list_checkpoints(), help="Model of the package.")
    parser.add_argument("repo_id", help="Repository on the Hub: USER/NAME.")
    parser.add_argument("--private", action="store_true", help="Whether a new one is private.")
    parser.add_argument("--dry-run", action="store_true", help="List the files and send nothing.")
    arguments = parser.parse_args()
    push = push_folder(
        arguments.name,
        arguments.repo_id,
        share="metrics",
        private=arguments.private,
        dry_run=arguments.dry_run,
        report_progress=print,
    )
    print(push.url or "Nothing was sent.")


if __name__ == "__main__":
    main()
