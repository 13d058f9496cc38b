"""Two runs at once, and disks that are full or read-only: one line, and nothing is lost."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from full_disks import mounted_disk, small_files
from tiny_finetuning import build_tiny_arguments
from tiny_pretraining import build_pretraining_arguments

from rmat_hf.errors import UserError
from rmat_hf.output_lock import lock_output
from rmat_hf.training.checkpoints import find_last_complete_checkpoint
from rmat_hf.training.finetuning import run_finetuning
from rmat_hf.training.pretraining import run_pretraining


def finetune(folder: Path, **options: Any) -> None:
    run_finetuning(build_tiny_arguments(folder, num_train_epochs=2, **options))


def pretrain(folder: Path, **options: Any) -> None:
    fields = {"max_steps": 4, "num_evaluations": 2, "model_config": None, **options}
    run_pretraining(build_pretraining_arguments(folder, **fields))


RUNS = [pytest.param(finetune, id="finetune"), pytest.param(pretrain, id="pretrain")]


def list_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("run", RUNS)
def test_second_run_is_refused_before_it_writes(tmp_path: Path, run: Callable[..., None]) -> None:
    with (
        lock_output(tmp_path / "run"),
        pytest.raises(UserError, match=r"Another run is writing '.*/run'\. Wait until it ends"),
    ):
        run(tmp_path)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "run.in_progress").exists()


@pytest.mark.parametrize("run", RUNS)
def test_checkpoint_that_cannot_be_written_is_one_error_and_resuming_works(
    tmp_path: Path, run: Callable[..., None]
) -> None:
    (tmp_path / "run").mkdir()
    with (
        small_files(90_000),
        pytest.raises(
            UserError,
            match=r"run\.in_progress cannot be written: .*\. Make room there and repeat",
        ) as caught,
    ):
        run(tmp_path)
    assert "\n" not in str(caught.value)
    assert list_files(tmp_path / "run") == {}
    assert find_last_complete_checkpoint(tmp_path / "run.in_progress") is None
    run(tmp_path, resume=True)
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert not (tmp_path / "run.in_progress").exists()
    assert not list(tmp_path.glob(".run*"))


def test_older_model_stays_when_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    finetune(tmp_path)
    before = list_files(tmp_path / "run")
    with small_files(20_000), pytest.raises(UserError, match="cannot be written"):
        finetune(tmp_path, overwrite=True)
    assert list_files(tmp_path / "run") == before


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that nobody may write, where mounting one is permitted."""
    with mounted_disk(tmp_path / "disk", "ro") as folder:
        yield folder


@pytest.mark.parametrize("run", RUNS)
def test_read_only_disk_is_refused_before_any_work(
    tmp_path: Path, read_only_disk: Path, run: Callable[..., None]
) -> None:
    with pytest.raises(UserError, match=r"Choose another output folder\.$"):
        run(tmp_path, output_dir=str(read_only_disk / "run"))
