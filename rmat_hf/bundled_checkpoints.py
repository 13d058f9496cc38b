"""Pretrained models that come with the package."""

from pathlib import Path

_FOLDER = Path(__file__).parent / "checkpoints"


def list_checkpoints() -> list[str]:
    """Return the names of the pretrained models that come with the package."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))


def checkpoint_path(name: str) -> Path:
    """Return the folder of a pretrained model that comes with the package.

    Args:
        name (`str`): One of `list_checkpoints()`, for example `"rmat-small"`.

    Returns:
        `Path`: what `from_pretrained` takes.

    Raises:
        ValueError: If there is no model of that name.
    """
    if name not in list_checkpoints():
        raise ValueError(f"No model {name!r} comes with rmat_hf. Known: {list_checkpoints()}.")
    return _FOLDER / name


def find_checkpoint(model: str | Path) -> str | Path:
    """Return the folder of a model named like one of the package's, else the argument itself.

    A folder of the user's that has the name goes first.

    Args:
        model (`str` or `Path`): Folder, Hub id or name.
    """
    if isinstance(model, str) and model in list_checkpoints() and not Path(model).exists():
        return checkpoint_path(model)
    return model
