"""Fuzz the readers with atheris: `make fuzz`, or `fuzz_readers.py OUTPUT_DIR [READER=CASES ...]`.

Each reader runs in a child of this process, guided by the lines that its cases reach, from the
seeds in `inputs/` and the same random seed each time. A wrong answer, an exception, a case of more
than ten seconds or the death of the child ends that reader; libFuzzer keeps the case in OUTPUT_DIR.
Put it into `inputs/READER`: the tests read it from then on.
"""

import importlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import atheris
import coverage

INPUTS = Path(__file__).parent / "inputs"
PACKAGE = Path(__file__).parents[2] / "rmat_hf"
READER_MODULES = ["data/tables.py", "data/sources.py", "data/sdf.py"]
READER_MODULES += ["model/features_rmat.py"]
DEFAULT_CASES = {
    "smiles": 30_000,
    "mol_block": 20_000,
    "csv": 20_000,
    "csv_gz": 10_000,
    "sdf": 15_000,
    "smi": 15_000,
    "parquet": 10_000,
}
FLAGS = ["-seed=1", "-timeout=10", "-rss_limit_mb=8192", "-max_len=4096", "-print_final_stats=1"]


def fuzz(
    reader: str, num_cases: int, measured: coverage.Coverage, *, output: Path, folder: Path
) -> None:
    """Run the cases of one reader in this process, which ends with them."""
    from reader_checks import CHECKS

    log = os.open(output / f"{reader}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    num_left, start = num_cases, time.monotonic()
    for name in ("case", "found"):
        (folder / name).mkdir()

    def check(data: bytes) -> None:
        nonlocal num_left
        (folder / "current").write_bytes(data)  # whatever ends the process, here is why
        CHECKS[reader](data, folder / "case")
        num_left -= 1
        if num_left == 0:
            seconds = time.monotonic() - start
            (output / f"{reader}.rate").write_text(f"{num_cases / seconds:.0f}")
            measured.stop()
            measured.save()
            os._exit(0)

    folders = [str(folder / "found"), str(INPUTS / reader)]
    atheris.Setup([sys.argv[0], *FLAGS, f"-artifact_prefix={folder}/", *folders], check)
    atheris.Fuzz()


def fuzz_in_child(
    reader: str, num_cases: int, measured: coverage.Coverage, *, output: Path
) -> bool:
    """Run the cases of one reader in a child; return whether all of them went well."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        child = os.fork()
        if child == 0:
            try:
                fuzz(reader, num_cases, measured, output=output, folder=Path(name))
            finally:
                os._exit(1)
        if os.waitpid(child, 0)[1] == 0:
            rate = (output / f"{reader}.rate").read_text()
            report(f"{reader}: {num_cases} cases, {rate} per second")
            return True
        shutil.copy(Path(name) / "current", output / f"{reader}-crash")
        report(f"{reader}: FAILED on {output}/{reader}-crash, see {output}/{reader}.log")
        return False


def report(line: str) -> None:
    """Print at once: the child must not inherit what is not yet printed."""
    print(line, flush=True)  # noqa: T201 - a script


def main() -> int:
    """Fuzz every reader and report; the exit code is the number of readers that failed."""
    output = Path(sys.argv[1]).resolve()
    output.mkdir(parents=True, exist_ok=True)
    chosen = dict(argument.split("=") for argument in sys.argv[2:])
    cases = {name: int(number) for name, number in chosen.items()} or DEFAULT_CASES
    for heavy in ("torch", "transformers", "datasets", "pandas"):
        importlib.import_module(heavy)
    include = [str(PACKAGE / module) for module in READER_MODULES]
    measured = coverage.Coverage(str(output / "coverage"), data_suffix=True, include=include)
    measured.start()
    names = ["rmat_hf." + name.removesuffix(".py").replace("/", ".") for name in READER_MODULES]
    with atheris.instrument_imports(include=names):
        importlib.import_module("reader_checks")
    results = [
        fuzz_in_child(reader, num_cases, measured, output=output)
        for reader, num_cases in cases.items()
    ]
    measured.stop()
    measured.save()
    measured.combine()
    measured.report(file=sys.stdout, show_missing=True)
    return results.count(False)


if __name__ == "__main__":
    sys.exit(main())
