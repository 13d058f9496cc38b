"""Run by test_pretraining_processes.py: pretrains, may be killed, leaves what it has seen.

Usage: python pretraining_process.py FOLDER NAME OPTIONS
"""

import json
import os
import signal
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from safetensors.torch import save_file
from tiny_pretraining import build_pretraining_arguments
from torch import distributed
from transformers import TrainerCallback

from rmat_hf.training.pretraining import run_pretraining
from rmat_hf.training.pretraining_trainer import (
    PretrainingBatch,
    PretrainingTrainer,
    RMatDataCollatorForPreTraining,
)

# Epoch and checksum of every molecule of a batch; a worker of the dataloader collates in a process
# of its own, so they travel with the batch.
SEEN = "seen"


class DieLater(TrainerCallback):
    """Kills the process some time after a step of a stage, wherever it is then."""

    def __init__(self, *, stage: int, step: int, delay: float) -> None:
        self.stage = stage
        self.step = step
        self.delay = delay

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stage = int(Path(args.output_dir).name.removeprefix("stage-"))
        if (stage, state.global_step) == (self.stage, self.step):
            kill = threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL))
            kill.daemon = True
            kill.start()


class RecordingCollator(RMatDataCollatorForPreTraining):
    """Adds the checksums of the molecules to the batch."""

    def __call__(self, batches: list[PretrainingBatch]) -> dict[str, torch.Tensor]:
        seen = [
            (batch.epoch, zlib.crc32(molecule)) for batch in batches for molecule in batch.features
        ]
        return {**super().__call__(batches), SEEN: torch.tensor(seen)}


class RecordingTrainer(PretrainingTrainer):
    """Notes down what is learned from, and leaves it and the weights of this process."""

    folder: Path
    kill_at: dict[str, Any] | None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[list[int]] = []
        if self.kill_at is not None and self.args.process_index == 0:
            self.add_callback(DieLater(**self.kill_at))

    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = dict(inputs)
        seen = inputs.pop(SEEN).tolist()
        if self.model.training:
            self.seen += seen
        return super()._prepare_inputs(inputs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call=_internal_call)
        if output_dir is not None and Path(output_dir).name == "model":
            rank = self.args.process_index
            weights = self.accelerator.get_state_dict(self.model)
            save_file(weights, self.folder / f"{rank}.safetensors")
            content = {
                "num_processes": self.args.world_size,
                "distribution": self.accelerator.distributed_type.value,
                "seen": self.seen,
            }
            (self.folder / f"{rank}.json").write_text(json.dumps(content))


def shard_on_cpu() -> None:
    """Let accelerate use FSDP where there is no GPU: it would choose DDP without a word."""
    create = AcceleratorState.__init__

    def create_sharded(self: AcceleratorState, *args: Any, **options: Any) -> None:
        create(self, *args, **options)
        if options.get("fsdp_plugin") is not None:
            self.fsdp_plugin = options["fsdp_plugin"]
            if self._mixed_precision != "no":
                self.fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = create_sharded


def main(corpus_folder: Path, name: str, options: dict[str, Any]) -> None:
    """Pretrain `FOLDER/corpus` into `FOLDER/NAME/run`."""
    RecordingTrainer.folder = corpus_folder / name
    RecordingTrainer.kill_at = options.pop("kill_at", None)
    shard_on_cpu()
    module = sys.modules["rmat_hf.training.pretraining"]
    for attribute, replacement in (
        ("RMatDataCollatorForPreTraining", RecordingCollator),
        ("PretrainingTrainer", RecordingTrainer),
    ):
        setattr(module, attribute, replacement)
    arguments = build_pretraining_arguments(
        corpus_folder,
        output_dir=str(corpus_folder / name / "run"),
        **options,
    )
    run_pretraining(arguments)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
    if distributed.is_initialized():
        distributed.destroy_process_group()
