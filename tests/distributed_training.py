"""Run by torchrun in test_distributed.py: trains, predicts, leaves what each process has."""

import json
import os
import sys
from pathlib import Path

from safetensors.torch import save_file
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, build_tiny_arguments
from tiny_trainer import build_rows, build_trainer
from torch import distributed

from rmat_hf.training.finetuning import run_finetuning

NUM_TRAIN_ROWS = 32
NUM_EVAL_ROWS = 13


def train(folder: Path, *, source: str, num_eval_rows: int, batch_size: int = 4) -> None:
    """Train four steps; each process leaves its weights, the rows it saw and the predictions."""
    train_rows = build_rows(NUM_TRAIN_ROWS, share_missing=0.5)
    eval_rows = build_rows(num_eval_rows)
    options = {}
    if source == "stream":
        train_rows = train_rows.to_iterable_dataset(num_shards=4)
        eval_rows = eval_rows.to_iterable_dataset(num_shards=4)
        options["accelerator_config"] = {"dispatch_batches": False}
    trainer = build_trainer(
        folder / "work",
        train_dataset=train_rows,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=3,
        max_steps=4,
        **options,
    )
    seen: list[int] = []
    collate = trainer.data_collator

    def record(rows: list[dict]) -> dict:
        seen.extend(row["row"] for row in rows)
        return collate(rows)

    trainer.data_collator = record
    trainer.train()
    seen_in_training = list(seen)
    output = trainer.predict(eval_rows)
    rank = trainer.args.process_index
    save_file(
        trainer.accelerator.unwrap_model(trainer.model).state_dict(), folder / f"{rank}.safetensors"
    )
    content = {
        "num_processes": trainer.args.world_size,
        "grad_norms": [log["grad_norm"] for log in trainer.state.log_history if "grad_norm" in log],
        "rows": seen_in_training,
        "predictions": output.predictions.tolist(),
        "labels": output.label_ids.tolist(),
    }
    (folder / f"{rank}.json").write_text(json.dumps(content))


def finetune(folder: Path, *, rank: str) -> None:
    """Run the whole finetuning."""
    columns = {"y": [len(smiles) for smiles in TABLE_SMILES], "part": TABLE_PARTS}
    own = folder / f"input_{rank}"
    own.mkdir()
    arguments = build_tiny_arguments(own, columns, num_train_epochs=2, batch_size=2)
    arguments.output_dir = str(folder / "run")
    result = run_finetuning(arguments)
    (folder / f"{rank}.json").write_text(json.dumps(result.metrics))


if __name__ == "__main__":
    mode, target = sys.argv[1], Path(sys.argv[2])
    if mode == "finetune":
        finetune(target, rank=os.environ["RANK"])
    else:
        train(target, source=mode, num_eval_rows=NUM_EVAL_ROWS)
    distributed.destroy_process_group()
