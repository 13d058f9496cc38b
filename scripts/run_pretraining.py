"""Pretrain R-MAT on a table of SMILES: an example script, to be copied and changed.

    python scripts/run_pretraining.py --train_file library.csv --do_train --do_eval \
        --num_train_epochs 5 --output_dir runs/pretrained

--help lists the flags: those below and the fields of `TrainingArguments`. A JSON file with them
does too. It masks atoms and asks for their surroundings, asks for descriptors of whole molecules,
and trains on with what a model was pretrained for. For objectives of your corpus, batches with a
budget of memory and corpora that fit in none: `rmat pretrain`.
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, load_dataset
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from rmat_hf import (
    RMatConfig,
    RMatDataCollatorForPreTraining,
    RMatForPreTraining,
    RMatProcessor,
    checkpoint_path,
    featurize_dataset,
    list_checkpoints,
)


@dataclass
class ModelArguments:
    """What the training starts from."""

    model_name_or_path: str = field(
        default="rmat-small", metadata={"help": "Model of the package, folder or Hub id."}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."}
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "Random weights; architecture and tasks of the model."}
    )


@dataclass
class DataArguments:
    """The molecules, and what is hidden of them."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub."})
    train_file: str | None = field(default=None, metadata={"help": "CSV, JSON or Parquet file."})
    smiles_column: str = field(default="smiles", metadata={"help": "Column with the SMILES."})
    validation_split_percentage: int = field(default=5, metadata={"help": "Molecules held out."})
    mask_ratio: float = field(default=0.15, metadata={"help": "Share of atoms to find."})
    max_samples: int | None = field(default=None, metadata={"help": "First rows, for a trial."})
    preprocessing_num_workers: int = field(default=0, metadata={"help": "Featurize in processes."})

    def load(self) -> Dataset:
        """Return the rows of the table."""
        if (self.dataset_name is None) == (self.train_file is None):
            raise ValueError("Give one of --dataset_name and --train_file.")
        if self.train_file is not None:
            kind = self.train_file.rsplit(".", 1)[-1]
            table = load_dataset(kind, data_files=self.train_file, split="train")
        else:
            table = load_dataset(self.dataset_name, split="train")
        return table.select(range(min(len(table), self.max_samples or len(table))))


def main() -> None:
    """Run what the flags ask for."""
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        model_args, data_args, training_args = parser.parse_json_file(sys.argv[1])
    else:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    logging.basicConfig(level=logging.INFO)
    set_seed(training_args.seed)

    name, revision = model_args.model_name_or_path, model_args.model_revision
    path = checkpoint_path(name) if name in list_checkpoints() else name
    collator = RMatDataCollatorForPreTraining.from_pretrained(
        name, revision=revision, mask_ratio=data_args.mask_ratio, seed=training_args.seed
    )
    # the collator reads features, which are no arguments of the model
    training_args.remove_unused_columns = False
    training_args.label_names = [f"{it.head}_labels" for it in collator.objectives.values()]
    training_args.prediction_loss_only = True
    rows = featurize_dataset(
        data_args.load(),
        collator.processor,
        smiles_column=data_args.smiles_column,
        num_workers=data_args.preprocessing_num_workers,
    )
    share = data_args.validation_split_percentage / 100
    parts = rows.train_test_split(share, seed=training_args.seed)
    if model_args.from_scratch:
        model = RMatForPreTraining(RMatConfig.from_pretrained(path, revision=revision))
    else:
        model = RMatForPreTraining.from_pretrained(path, revision=revision)
    trainer = Trainer(
        model=model,
        args=training_args,
        data_collator=collator,
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        # a finetuning decides for itself whether it computes descriptors
        processing_class=RMatProcessor.from_pretrained(path, revision=revision),
    )

    if training_args.do_train:
        checkpoint = training_args.resume_from_checkpoint
        checkpoint = checkpoint or get_last_checkpoint(training_args.output_dir)
        metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
        trainer.save_model()
        collator.save_pretrained(training_args.output_dir)
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics | {"train_samples": len(parts["train"])})
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics | {"eval_samples": len(parts["test"])})
    if training_args.push_to_hub:
        # the card names no path of this machine
        kwargs = {"dataset": data_args.dataset_name or Path(data_args.train_file).name}
        if not model_args.from_scratch:
            kwargs["finetuned_from"] = Path(name).name if Path(name).exists() else name
        trainer.push_to_hub(tags=["rmat", "pretrained"], **kwargs)


if __name__ == "__main__":
    main()
