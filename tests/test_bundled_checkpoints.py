from pathlib import Path

import pytest

from rmat_hf import bundled_checkpoints
from rmat_hf.bundled_checkpoints import checkpoint_path, find_checkpoint, list_checkpoints


@pytest.fixture
def bundled_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("rmat-medium", "rmat-small"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    monkeypatch.setattr(bundled_checkpoints, "_FOLDER", tmp_path)
    return tmp_path


def test_models_of_the_package_are_found_by_name(bundled_folder: Path) -> None:
    assert list_checkpoints() == ["rmat-medium", "rmat-small"]
    assert checkpoint_path("rmat-small") == bundled_folder / "rmat-small"
    assert find_checkpoint("rmat-small") == bundled_folder / "rmat-small"


def test_an_unknown_name_is_refused(bundled_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"No model 'notes' comes with.*'rmat-small'"):
        checkpoint_path("notes")


def test_other_models_are_left_alone(
    bundled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_checkpoint("you/rmat-small") == "you/rmat-small"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rmat-small").mkdir(exist_ok=True)
    assert find_checkpoint("rmat-small") == "rmat-small"
    assert find_checkpoint(Path("rmat-small")) == Path("rmat-small")
