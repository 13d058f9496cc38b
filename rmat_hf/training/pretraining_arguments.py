"""The dataclass behind the flags of `rmat pretrain`."""

from dataclasses import dataclass
from typing import Any, Literal

from rmat_hf.flags import (
    declare_flag,
    declare_required,
    validate_flags,
)
from rmat_hf.training.arguments import SCRATCH

Objective = Literal["contexts", "descriptors", "joint", "sequential"]
MaskedDistances = Literal["visible", "hidden"]
Precision = Literal["float32", "bfloat16"]

# What two processor cores can fill in a few hours.
PRETRAINING_ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_head_layers": 2,
}


@dataclass(kw_only=True)
class PretrainingArguments:
    """Everything `run_pretraining` needs to know; each field is a flag of `rmat pretrain`."""

    corpus: str = declare_required(
        "Folder written by rmat featurize, its shards, or such a data set on the Hub."
    )
    output_dir: str = declare_required("Folder to write: a model to finetune.")
    corpus_revision: str | None = declare_flag(None, "Branch, tag or commit of a Hub corpus.")
    streaming: bool = declare_flag(False, "Read the corpus while training; needs --max-steps.")
    model: str = declare_flag(SCRATCH, "Model to continue from, or 'scratch' for random weights.")
    model_revision: str | None = declare_flag(None, "Branch, tag or commit of a Hub model.")
    model_config: str | None = declare_flag(None, "JSON file with RMatConfig fields to override.")
    objective: Objective = declare_flag(
        "joint",
        "contexts of masked atoms, molecule descriptors, both one after the other (sequential), "
        "or at once (joint).",
    )
    mask_ratio: float = declare_flag(
        0.15, "Chance of an atom to be asked for its context.", above=0, below=1
    )
    masked_distances: MaskedDistances = declare_flag(
        "visible",
        "Whether 3D distances of masked atoms are hidden too; bond lengths tell much of a context.",
    )
    min_context_count: int = declare_flag(
        10, "Contexts that occur less often in the corpus are one class.", least=1
    )
    valid_fraction: float = declare_flag(
        0.01, "Share of the molecules that are held out.", above=0, below=1
    )
    learning_rate: float = declare_flag(1e-3, "Peak learning rate of AdamW.", least=0)
    num_train_epochs: float = declare_flag(
        10.0, "Passes over the corpus, of each step.", least=1e-6
    )
    max_steps: int | None = declare_flag(None, "Batches, instead of epochs.", least=1)
    batch_size: int = declare_flag(128, "Most molecules of a batch.", least=1)
    max_pairs: int = declare_flag(
        65_536, "Most pairs of nodes of a batch: 81 molecules of 27 atoms, 16 of 63.", least=1
    )
    gradient_accumulation_steps: int = declare_flag(
        1, "Batches of one step of each process.", least=1
    )
    weight_decay: float = declare_flag(0.01, "Weight decay of AdamW.", least=0)
    warmup_ratio: float = declare_flag(
        0.05, "Share of the steps with a rising learning rate.", least=0
    )
    precision: Precision = declare_flag("float32", "bfloat16 computes most of it in half of that.")
    num_evaluations: int = declare_flag(
        20, "How often in a run valid is scored and saved.", least=1
    )
    num_workers: int = declare_flag(
        0, "Processes that prepare batches beside the one that trains.", least=0
    )
    seed: int = declare_flag(0, "Seed of weights, order, masks and the valid part.", least=0)
    overwrite: bool = declare_flag(False, "Replace the output folder if it has files.")
    resume: bool = declare_flag(False, "Continue an interrupted run of the same output folder.")
    license: str | None = declare_flag(None, "License of the model for its card.")
    report_to: list[str] = declare_flag(["none"], "Experiment trackers, for example tensorboard.")
    training_arguments: str | None = declare_flag(
        None, "JSON file with transformers.TrainingArguments to override, for example fsdp."
    )

    def __post_init__(self) -> None:
        """Raise a `ValueError` for values that contradict each other."""
        validate_flags(self)
        if self.streaming and self.max_steps is None:
            raise ValueError("--streaming needs --max-steps: a stream does not tell its length.")
        if self.overwrite and self.resume:
            raise ValueError("--overwrite starts anew and --resume continues: choose one.")

    @property
    def stages(self) -> list[str]:
        """What is learned, one stage after the other: `contexts`, `descriptors` or `joint`."""
        # CODEPATH: the two steps of the publication.
        if self.objective == "sequential":
            return ["contexts", "descriptors"]
        return [self.objective]
