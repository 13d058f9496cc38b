"""Featurized rows and a Trainer for them, without a table on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from tiny import TINY_ARCHITECTURE
from tiny_finetuning import TABLE_SMILES
from transformers.trainer import Trainer

from rmat_hf.data.featurization import LENGTH_COLUMN
from rmat_hf.data.stored_features import build_features_column, count_nodes, pack_features
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.recipe import RMatTrainingArguments
from rmat_hf.training.trainer import RMatDataCollator, RMatTrainer

NUM_LABELS = 2
PROCESSOR = RMatProcessor(geometry="bounds")


def build_rows(num_rows: int, *, share_missing: float = 0.0) -> Dataset:
    """Return molecules of different sizes with two random labels, as `featurize_dataset` does."""
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(num_rows, NUM_LABELS))
    labels[
        rng.permutation(num_rows * NUM_LABELS).reshape(labels.shape) < share_missing * 2 * num_rows
    ] = np.nan
    rows, packed = [], []
    for row in range(num_rows):
        smiles = "C" * (row % 3) + TABLE_SMILES[row % len(TABLE_SMILES)]
        packed.append(pack_features(PROCESSOR.featurize_compactly(smiles)))
        rows.append({"row": row, "labels": labels[row].tolist()})
    features = {"features": build_features_column(packed), LENGTH_COLUMN: count_nodes(packed)}
    return concatenate_datasets([Dataset.from_list(rows), Dataset.from_dict(features)], axis=1)


def build_model(**options: Any) -> RMatForSequenceClassification:
    """Return a tiny model with the same weights every time."""
    fields = {"num_labels": NUM_LABELS, "problem_type": "regression", "hidden_dropout_prob": 0.0}
    fields |= {"attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    return RMatForSequenceClassification(RMatConfig(**{**TINY_ARCHITECTURE, **fields, **options}))


def build_trainer(
    folder: Path,
    *,
    model: Any = None,
    trainer_class: type[Trainer] = RMatTrainer,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    callbacks: Any = None,
    **options: Any,
) -> Trainer:
    """Return a Trainer on the CPU that goes through the rows in order, logs every step."""
    # the defaults of transformers, which tests of single steps were written for
    fields: dict[str, Any] = {
        "num_train_epochs": 3,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "lr_scheduler_type": "linear",
        "ema_decay": 0.0,
        "eval_strategy": "no",
        "logging_strategy": "steps",
        "save_total_limit": None,
        "load_best_model_at_end": False,
        "seed": 42,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    return trainer_class(
        model=build_model() if model is None else model,
        args=RMatTrainingArguments(output_dir=str(folder), **{**fields, **options}),
        data_collator=RMatDataCollator(PROCESSOR),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=PROCESSOR,
        callbacks=callbacks,
    )
