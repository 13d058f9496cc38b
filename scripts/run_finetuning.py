"""Finetune R-MAT on a table of SMILES and labels: an example script, to be copied and changed.

    python scripts/run_finetuning.py --train_file measurements.csv --label_columns pIC50 \
        --split scaffold --do_train --do_eval --do_predict --output_dir runs/pic50

--help lists the flags: those below and the fields of `RMatTrainingArguments`. A JSON file with them
does too. `rmat finetune` trains the same model without a line of code.
"""

import logging
import sys
from dataclasses import dataclass, field

import pandas as pd
from datasets import Dataset, load_dataset
from transformers import HfArgumentParser
from transformers.trainer_utils import get_last_checkpoint

from rmat_hf import (
    ModelCardCallback,
    RMatProcessor,
    RMatTrainer,
    RMatTrainingArguments,
    checkpoint_path,
    featurize_dataset,
    list_checkpoints,
    load_for_finetuning,
    predict,
    split_dataset,
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


@dataclass
class DataArguments:
    """The table, and what is done with it."""

    label_columns: list[str] = field(metadata={"help": "Columns with the labels."})
    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub."})
    train_file: str | None = field(default=None, metadata={"help": "CSV, JSON or Parquet file."})
    smiles_column: str = field(default="smiles", metadata={"help": "Column with the SMILES."})
    label_units: list[str] = field(default_factory=list, metadata={"help": "Unit of each label."})
    problem_type: str = field(
        default="regression",
        metadata={"help": "Or multi_label_classification, single_label_classification."},
    )
    split: str = field(default="random", metadata={"help": "As --split of rmat finetune."})
    split_column: str | None = field(
        default=None, metadata={"help": "For --split column: train, valid or test."}
    )
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
    parser = HfArgumentParser((ModelArguments, DataArguments, RMatTrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        model_args, data_args, training_args = parser.parse_json_file(sys.argv[1])
    else:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    logging.basicConfig(level=logging.INFO)

    name, revision = model_args.model_name_or_path, model_args.model_revision
    path = checkpoint_path(name) if name in list_checkpoints() else name
    processor = RMatProcessor.from_pretrained(path, revision=revision)
    labels = {"label_columns": data_args.label_columns, "problem_type": data_args.problem_type}
    rows = featurize_dataset(
        data_args.load(),
        processor,
        smiles_column=data_args.smiles_column,
        num_workers=data_args.preprocessing_num_workers,
        **labels,
    )
    options = {} if data_args.split_column is None else {"split_column": data_args.split_column}
    parts = split_dataset(rows, data_args.split, seed=training_args.seed, **options)
    model = load_for_finetuning(
        name,
        parts["train"],
        label_units=data_args.label_units,
        revision=revision,
        seed=training_args.seed,
        **labels,
    )
    source = data_args.dataset_name or data_args.train_file
    trainer = RMatTrainer(
        model=model,
        args=training_args,
        train_dataset=parts["train"],
        eval_dataset=parts["valid"],
        processing_class=processor,
        callbacks=[ModelCardCallback(source, split=data_args.split, base_model=name)],
    )

    if training_args.do_train:
        checkpoint = training_args.resume_from_checkpoint
        checkpoint = checkpoint or get_last_checkpoint(training_args.output_dir)
        metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics | {"train_samples": len(parts["train"])})
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics | {"eval_samples": len(parts["valid"])})
    if training_args.do_predict:
        found = trainer.predict(parts["test"])
        trainer.log_metrics("test", found.metrics)
        trainer.save_metrics("test", found.metrics | {"test_samples": len(parts["test"])})
        if trainer.is_world_process_zero():
            # rows of the table instead of SMILES: what is pushed tells no molecule
            columns = predict(model, parts["test"]["smiles"][:], processor=processor).to_columns()
            table = pd.DataFrame({"row": parts["test"]["row"][:], **columns})
            table.to_csv(f"{training_args.output_dir}/predictions.csv", index=False)
    if training_args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
