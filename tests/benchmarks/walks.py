"""Count what one molecule, or one command, walks through: modules, openings, parses.

    python tests/benchmarks/walks.py [predict-call|predict|finetune ...] [--base VERSION]

A profile hook notes the modules of `rmat_hf` whose functions are called, an audit hook the readings
of config.json. Every walk has a process of its own, whose `PYTHONPATH` is the version.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from versions import build_parser, run_in_version, save_tiny_predictor, unpack_versions, write_rows

import rmat_hf

PACKAGE = str(Path(rmat_hf.__file__).parent)
FREESOLV = Path(PACKAGE) / "data" / "freesolv" / "freesolv.csv"
# what runs while a file is imported is no walk
IMPORTING = ("<module>", "<lambda>", "<genexpr>", "<listcomp>", "<dictcomp>")
NUM_ROWS = 59


class Walk:
    """Counts what happens in a `with` block."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.num_parses = 0
        self.num_config_reads = 0
        self.is_on = False
        sys.addaudithook(self._note_opening)

    def __enter__(self) -> "Walk":
        self.is_on = True
        threading.setprofile(self._note_call)
        sys.setprofile(self._note_call)
        return self

    def __exit__(self, *exception_info: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # None ends it
        self.is_on = False

    def _note_call(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE):
            return
        if code.co_name in IMPORTING or self._is_importing(frame):
            return
        self.modules.add(code.co_filename[len(PACKAGE) + 1 :])
        self.num_parses += code.co_name == "parse_molecule"

    def _is_importing(self, frame: FrameType) -> bool:
        """Whether a file of the package is being imported above, as where a dataclass is made."""
        above: FrameType | None = frame
        while above is not None:
            code = above.f_code
            if code.co_name == "<module>" and code.co_filename.startswith(PACKAGE):
                return True
            above = above.f_back
        return False

    def _note_opening(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event == "open" and isinstance(arguments[0], str | Path):
            is_read = not arguments[2] & (os.O_WRONLY | os.O_RDWR)
            self.num_config_reads += is_read and Path(arguments[0]).name == "config.json"

    def describe(self) -> dict[str, Any]:
        return {
            "modules": len(self.modules),
            "config.json read": self.num_config_reads,
            "parses": self.num_parses,
            "which": sorted(self.modules),
        }


def run_command(*words: str) -> None:
    from rmat_hf.cli import main

    sys.argv = ["rmat", *words]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise


def walk_predict_call(folder: Path) -> Walk:
    """One SMILES through `predict`, with the model loaded before."""
    # in versions of before there were wings, it is in a file of another name
    name = "loading" if Path(PACKAGE, "loading.py").is_file() else "model_loading"
    loading = importlib.import_module(f"rmat_hf.{name}")
    model, processor = loading.load_predictor(folder / "model", device="cpu")
    rmat_hf.predict(model, ["CCN"], processor=processor)
    with Walk() as walk:
        rmat_hf.predict(model, ["CCO"], processor=processor)
    return walk


def walk_predict(folder: Path) -> Walk:
    """`rmat predict --smiles CCO`."""
    with Walk() as walk:
        words = ["predict", "--model", str(folder / "model"), "--smiles", "CCO"]
        run_command(*words, "--num-workers", "0", "--output", str(folder / "out.csv"))
    return walk


def walk_finetune(folder: Path) -> Walk:
    """`rmat finetune` of the bundled model, 59 rows of FreeSolv, 1 epoch."""
    table = folder / "table.csv"
    with FREESOLV.open(encoding="utf-8") as stream, table.open("w", encoding="utf-8") as written:
        written.writelines(line for _, line in zip(range(NUM_ROWS + 1), stream, strict=False))
    words = ["finetune", "--dataset", str(table), "--label-columns", "hydration_free_energy"]
    words += ["--geometry", "bounds", "--num-workers", "0", "--num-train-epochs", "1"]
    with Walk() as walk:
        run_command(*words, "--feature-cache", "none", "--output-dir", str(folder / "run"))
    return walk


WALKS: dict[str, Callable[[Path], Walk]] = {
    "predict-call": walk_predict_call,
    "predict": walk_predict,
    "finetune": walk_finetune,
}


def measure_walk(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_predictor(Path(PACKAGE).parent, Path(folder) / "model")
        return WALKS[name](Path(folder)).describe()


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="WALK", help=", ".join(WALKS))
    parser.add_argument("--measure", choices=list(WALKS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        sys.stdout.write(f"{json.dumps(measure_walk(arguments.measure))}\n")
        return
    rows = [["walk", "version", "modules", "config.json read", "parses"]]
    with unpack_versions(arguments.base) as roots:
        for name in arguments.names or WALKS:
            for tree, root in roots.items():
                output = run_in_version(root, __file__, "--measure", name)
                found = json.loads(output.splitlines()[-1])
                sys.stderr.write(f"{name}, {tree}: {' '.join(found.pop('which'))}\n")
                rows.append([name, tree, *found.values()])
    write_rows(rows)


if __name__ == "__main__":
    main()
