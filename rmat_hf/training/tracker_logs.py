"""The curves of an experiment tracker in a folder for others: numbers, and nothing else."""

import importlib.util
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

LOG_DIR = "runs"
# The name of a run is its time and the name of the machine; that of a file has it as well.
_TIME = re.compile(r"[A-Z][a-z]{2}\d\d_\d\d-\d\d-\d\d")
_FILE_PREFIX = "events.out.tfevents"


def copy_tracker_logs(work_dir: Path, folder: Path) -> None:
    """Copy the numbers that TensorBoard logged, if it was asked for.

    The texts are left out, which are all arguments with paths of this machine, and so is the name
    of the machine.

    Args:
        work_dir (`Path`): Where the run logged.
        folder (`Path`): Gets a folder `runs` that TensorBoard opens.
    """
    files = sorted((work_dir / LOG_DIR).rglob(f"{_FILE_PREFIX}.*"))
    if not files:
        return
    if importlib.util.find_spec("tensorboard") is None:
        logger.warning("The curves of the run are left out: tensorboard is missing.")
        return
    from tensorboard.summary.writer.record_writer import RecordWriter

    for number, path in enumerate(files):
        time = _TIME.search(str(path.relative_to(work_dir)))
        target = folder / LOG_DIR / (time[0] if time else "run")
        target.mkdir(parents=True, exist_ok=True)
        with (target / f"{_FILE_PREFIX}.{number}").open("wb") as stream:
            writer = RecordWriter(stream)
            for event in _iterate_numbers(path):
                writer.write(event.SerializeToString())
            writer.flush()


def _iterate_numbers(path: Path) -> Iterator[Any]:
    """Yield the event that says which version the file has, and those with a number."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for event in LegacyEventFileLoader(str(path)).Load():
        kinds = {value.WhichOneof("value") for value in event.summary.value}
        if event.HasField("file_version") or kinds == {"simple_value"}:
            event.ClearField("source_metadata")
            yield event
