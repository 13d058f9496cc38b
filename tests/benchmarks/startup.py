"""CPU seconds of starting up, in turns: commands and imports, for one or two versions of the code.

    python tests/benchmarks/startup.py [--base VERSION] [--model FOLDER] [--rounds 5]

Every number is the median over the rounds of user and system time of a new process.
"""

import resource
import tempfile
from pathlib import Path
from statistics import median

from versions import (
    REPO_ROOT,
    build_parser,
    run_in_version,
    save_tiny_predictor,
    unpack_versions,
    write_rows,
)

# as the command `rmat` does, whose name the package looks at when it is imported
RMAT = "import sys; sys.argv = ['rmat', {}]; from rmat_hf.cli import main; main()"
PREDICT = "'predict', '--model', {!r}, '--smiles', 'CCO', '--num-workers', '0', '--output', {!r}"
COMMON = {
    "import torch": "import torch",
    "import torch; PreTrainedModel": "import torch; from transformers import PreTrainedModel",
}


def build_statements(model: str, output: Path) -> dict[str, str]:
    return {
        "import rmat_hf": "import rmat_hf",
        "rmat --help": RMAT.format("'--help'"),
        "rmat --version": RMAT.format("'--version'"),
        "rmat predict --smiles CCO": RMAT.format(PREDICT.format(model, str(output))),
    }


def measure(statement: str, root: Path) -> float:
    """Return the CPU seconds of a process that runs a statement."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_in_version(root, "-c", statement)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--model", type=Path, help="folder of a predictor; default: a tiny one")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with unpack_versions(arguments.base) as roots, tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model is None:
            # what the first version writes, all can read
            model = Path(folder) / "model"
            save_tiny_predictor(next(iter(roots.values())), model)
        output = Path(folder) / "predictions.csv"
        cases = {(name, ""): (statement, REPO_ROOT) for name, statement in COMMON.items()}
        for name, statement in build_statements(str(model.resolve()), output).items():
            cases |= {(name, tree): (statement, root) for tree, root in roots.items()}
        seconds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
        # the round before the first compiles what has not been
        for round_number in range(-1, arguments.rounds):
            for case, (statement, root) in cases.items():
                output.unlink(missing_ok=True)
                cost = measure(statement, root)
                if round_number >= 0:
                    seconds[case].append(cost)
    torch, library = (median(seconds[name, ""]) for name in COMMON)
    rows = [["", "version", "CPU seconds", *(f"times {name}" for name in COMMON)]]
    for (name, tree), values in seconds.items():
        cost = median(values)
        rows.append([name, tree, f"{cost:.2f}", f"{cost / torch:.2f}", f"{cost / library:.2f}"])
    write_rows(rows)


if __name__ == "__main__":
    main()
