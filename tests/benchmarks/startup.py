"""CPU seconds of starting up, in turns: commands and imports, for one or two versions of the code.

    python tests/benchmarks/startup.py [--base FOLDER] [--rounds 5]

FOLDER is a checkout of the other version. Every number is the median over the rounds of user and
system time of a new process.
"""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

REPO_ROOT = Path(__file__).resolve().parents[2]
RMAT = "import sys; from rmat_hf.cli import main; sys.argv = ['rmat', {}]; main()"
PREDICT = "'predict', '--model', {!r}, '--smiles', 'CCO', '--num-workers', '0'"
COMMON = {
    "import torch": "import torch",
    "import torch; PreTrainedModel": "import torch; from transformers import PreTrainedModel",
}


def build_statements(model: str) -> dict[str, str]:
    return {
        "import rmat_hf": "import rmat_hf",
        "rmat --help": RMAT.format("'--help'"),
        "rmat --version": RMAT.format("'--version'"),
        "rmat predict --smiles CCO": RMAT.format(PREDICT.format(model)),
    }


def measure(statement: str, root: Path) -> float:
    """Return the CPU seconds of a process that runs a statement."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", statement], env=environment, capture_output=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path, help="checkout of the version to compare with")
    parser.add_argument("--model", default=str(REPO_ROOT / "runs" / "quickstart"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    trees = {"before": arguments.base} if arguments.base else {}
    trees["now"] = REPO_ROOT
    cases = {(name, ""): (statement, REPO_ROOT) for name, statement in COMMON.items()}
    for name, statement in build_statements(arguments.model).items():
        cases |= {(name, tree): (statement, root) for tree, root in trees.items()}
    seconds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for _ in range(arguments.rounds):
        for case, (statement, root) in cases.items():
            seconds[case].append(measure(statement, root))
    torch = median(seconds["import torch", ""])
    sys.stdout.write("| | version | CPU seconds | times import torch |\n|---|---|---|---|" + "\n")
    for (name, tree), values in seconds.items():
        cells = [name, tree, f"{median(values):.2f}", f"{median(values) / torch:.2f}"]
        sys.stdout.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
