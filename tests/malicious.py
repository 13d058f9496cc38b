"""Files that leave a mark when something in them is executed, and models that hold them."""

import json
import os
from pathlib import Path
from typing import Any

import torch

# What a stranger's folder may hold beside, or in place of, safetensors.
PICKLE_NAMES = [
    *("pytorch_model.bin", "model.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
    *("training_args.bin", "scaler.pt", "adapter_model.bin"),
]


class Payload:
    """Makes a folder when it is unpickled by a reader that trusts the file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def write_pickle(path: Path, mark: Path) -> None:
    """Write a file that makes the folder `mark` when it is unpickled."""
    torch.save({"rmat.final_norm.weight": Payload(mark)}, path)


def write_index(path: Path, shard: str, weight: str = "rmat.final_norm.weight") -> None:
    """Write the index of sharded weights with a single shard."""
    path.write_text(json.dumps({"metadata": {}, "weight_map": {weight: shard}}))


def pickle_the_weights(folder: Path, mark: Path) -> None:
    """Replace the weights of a model by a pickle."""
    (folder / "model.safetensors").unlink()
    write_pickle(folder / "pytorch_model.bin", mark)


def point_the_index_to_a_pickle(folder: Path, mark: Path) -> None:
    """Replace the weights of a model by an index of safetensors that names a pickle."""
    pickle_the_weights(folder, mark)
    write_index(folder / "model.safetensors.index.json", "pytorch_model.bin")


def write_code(folder: Path, mark: Path) -> None:
    """Replace the code beside a model by code that makes the folder `mark` when imported."""
    code = f"import os\nos.makedirs({str(mark)!r})\n"
    for path in folder.glob("*.py"):
        path.write_text(code)
    (folder / "evil.py").write_text(code)
