import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from rmat_hf.worker_processes import WorkerProcessError, one_thread, run_in_processes


def write_items(folder: Path, items: Iterator[int], report: Callable[[int], None]) -> None:
    for item in items:
        if item == 100:
            raise ValueError("item 100 is too large. Choose a smaller one.")
        if item == 101:
            os.kill(os.getpid(), signal.SIGKILL)
        with (folder / str(item)).open("x") as file:
            file.write(f"{os.getpid()} {torch.get_num_threads()}")
        report(item)


@pytest.mark.slow
def test_every_item_is_taken_once_and_the_progress_adds_up(tmp_path: Path) -> None:
    amounts: list[int] = []
    items = list(range(40))
    run_in_processes(partial(write_items, tmp_path), items, num_proc=2, report=amounts.append)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == items
    assert sum(amounts) == sum(items)
    assert all(path.read_text().endswith(" 1") for path in tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("item", "message"),
    [(100, "^A process failed: item 100 is too large"), (101, r"ended by signal 9 \(Killed\)")],
)
def test_process_that_fails_ends_the_others(tmp_path: Path, item: int, message: str) -> None:
    with pytest.raises(WorkerProcessError, match=message):
        run_in_processes(
            partial(write_items, tmp_path),
            [1, item, *range(2, 50)],
            num_proc=2,
            report=lambda amount: None,
        )


def test_one_thread_is_for_the_block_only() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
