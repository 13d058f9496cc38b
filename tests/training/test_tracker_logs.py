"""Curves for others: every number, and no text."""

import socket
from pathlib import Path
from typing import Any

import pytest

from rmat_hf.training.tracker_logs import copy_tracker_logs

LOSSES = [0.5, 0.25, 0.125]


def read_events(folder: Path) -> list[Any]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert events.Tags()["tensors"] == []
    return events.Scalars("train/loss")


def write_log(work_dir: Path) -> None:
    """Write what the callback of transformers writes, where it writes it."""
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    run = work_dir / "runs" / f"Nov23_01-02-03_{socket.gethostname()}"
    with SummaryWriter(str(run)) as writer:
        writer.add_text("args", '{"output_dir": "/home/me/secret"}')
        for step, loss in enumerate(LOSSES):
            writer.add_scalar("train/loss", loss, step)
        writer.add_hparams({"output": "/home/me/secret"}, {})


def test_nothing_is_written_where_nothing_was_logged(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    copy_tracker_logs(tmp_path / "work", tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []


def test_the_curve_is_copied_and_the_texts_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "telltale-host")
    write_log(tmp_path / "work")
    copy_tracker_logs(tmp_path / "work", tmp_path / "folder")
    run = tmp_path / "folder" / "runs" / "Nov23_01-02-03"
    scalars = read_events(run)
    assert [scalar.value for scalar in scalars] == LOSSES
    assert [scalar.step for scalar in scalars] == [0, 1, 2]
    for path in (tmp_path / "folder").rglob("*"):
        assert "telltale-host" not in path.name
        assert not path.is_file() or b"secret" not in path.read_bytes()
