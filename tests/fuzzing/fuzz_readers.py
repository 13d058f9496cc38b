"""Fuzz the readers with atheris: `make fuzz`, or `fuzz_readers.py OUTPUT_DIR [READER=CASES ...]`.

Each reader has a process of its own, guided by the lines that its cases reach, from the seeds in
`inputs/` and the same random seed each time. A wrong answer, an exception, a case of more than ten
seconds or the death of the process ends that reader; libFuzzer keeps the case in OUTPUT_DIR.
Put it into `inputs/READER`: the tests read it from then on.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

INPUTS = Path(__file__).parent / "inputs"
READER_MODULES = [
    "data.tables",
    "data.table_files",
    "data.sources",
    "model.features_rmat",
]
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


def fuzz(reader: str, num_cases: int, *, output: Path, folder: Path) -> None:
    """Run the cases of one reader in this process, which ends with them."""
    with atheris.instrument_imports(include=[f"rmat_hf.{name}" for name in READER_MODULES]):
        from reader_checks import CHECKS
    for name in ("case", "found"):
        (folder / name).mkdir()
    flags = [*FLAGS, f"-runs={num_cases}", f"-artifact_prefix={output}/{reader}-"]
    folders = [str(folder / "found"), str(INPUTS / reader)]
    atheris.Setup(
        [sys.argv[0], *flags, *folders], lambda data: CHECKS[reader](data, folder / "case")
    )
    atheris.Fuzz()


def main() -> int:
    """Fuzz every reader and report; the exit code is the number of readers that failed."""
    output = Path(sys.argv[1]).resolve()
    output.mkdir(parents=True, exist_ok=True)
    chosen = dict(argument.split("=") for argument in sys.argv[2:]) or DEFAULT_CASES
    num_failed = 0
    for reader, num_cases in chosen.items():
        with tempfile.TemporaryDirectory() as folder, (output / f"{reader}.log").open("wb") as log:
            command = [sys.executable, __file__, "--reader", reader, num_cases, output, folder]
            run = subprocess.run(list(map(str, command)), stdout=log, stderr=log)
        num_failed += run.returncode != 0
        sys.stdout.write(f"{reader}: exit code {run.returncode} of {num_cases} cases\n")
    return num_failed


if __name__ == "__main__":
    if sys.argv[1] == "--reader":
        fuzz(sys.argv[2], int(sys.argv[3]), output=Path(sys.argv[4]), folder=Path(sys.argv[5]))
    else:
        sys.exit(main())
