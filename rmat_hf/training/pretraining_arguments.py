"""The flags of `rmat pretrain`, and what they mean to the model and to `Trainer`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.training_args import TrainingArguments

from rmat_hf.flags import declare_flag, declare_required
from rmat_hf.loading import Checkpoint
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.training.arguments import (
    REGRESSION_HEAD,
    SCRATCH,
    RunArguments,
    build_config,
    build_trainer_arguments,
    load_json_fields,
)
from rmat_hf.training.objectives import parse_objective
from rmat_hf.training.objectives.descriptors import SCALES

Precision = Literal["auto", "float32", "bfloat16"]

LOGS_PER_EVALUATION = 10

# What two processor cores can fill in a few hours.
PRETRAINING_ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    **REGRESSION_HEAD,
}


@dataclass(kw_only=True)
class PretrainingArguments(RunArguments):
    """Everything `run_pretraining` needs to know; each field is a flag of `rmat pretrain`."""

    corpus: str = declare_required(
        "Folder of rmat featurize or save_to_disk, its shards, or a featurized data set on the Hub."
    )
    corpus_revision: str | None = declare_flag(None, "Branch, tag or commit of a Hub corpus.")
    streaming: bool = declare_flag(False, "Read the corpus while training; needs --max-steps.")
    model: str = declare_flag(SCRATCH, "Model to continue from, or 'scratch' for random weights.")
    objective: str = declare_flag(
        "joint",
        "contexts of masked atoms, molecule descriptors, both at once (joint) or one after the "
        "other (sequential), counts of substructures, labels of assays, properties of masked "
        "atoms; or a mix, with weights: "
        "contexts,descriptors,counts=0.5.",
    )
    descriptor_scale: str = declare_flag(
        "ranks",
        "Labels of descriptors: ranks in the corpus, or standardized and ending at 6, so that "
        "rare counts matter. A model that continues keeps its own.",
        choices=SCALES,
    )
    mask_ratio: float = declare_flag(0.15, "Share of atoms to find.", above=0, below=1)
    masked_distances: Literal["visible", "hidden"] = declare_flag(
        "visible",
        "Whether 3D distances of masked atoms are hidden too; bond lengths tell much of a context. "
        "With atoms among the objectives they always are.",
    )
    min_context_count: int = declare_flag(
        10, "Contexts that occur less often in the corpus are one class.", least=1
    )
    min_assay_labels: int = declare_flag(
        10,
        "Assays with fewer labels among the molecules counted, at most 100,000, are left out.",
        least=1,
    )
    valid_fraction: float = declare_flag(0.01, "Share of molecules held out.", above=0, below=1)
    learning_rate: float = declare_flag(1e-3, "Peak learning rate of AdamW.", least=0)
    num_train_epochs: float = declare_flag(10.0, "Passes over the corpus.", least=1e-6)
    max_steps: int | None = declare_flag(None, "Batches, instead of epochs.", least=1)
    batch_size: int = declare_flag(128, "Most molecules of a batch.", least=1)
    max_pairs: int = declare_flag(
        65_536, "Most pairs of nodes of a batch: 81 molecules of 27 atoms, 16 of 63.", least=1
    )
    gradient_accumulation_steps: int = declare_flag(1, "Batches of one step.", least=1)
    warmup_ratio: float = declare_flag(0.05, "Share of steps with a rising rate.", least=0)
    precision: Precision = declare_flag(
        "auto", "bfloat16 where the processor has units for it (auto), everywhere or nowhere."
    )
    num_evaluations: int = declare_flag(20, "How often valid is scored and saved.", least=1)
    num_workers: int = declare_flag(0, "Processes that prepare batches.", least=0)

    def list_contradictions(self) -> Iterator[str]:
        """Say which flags do not go together."""
        yield from super().list_contradictions()
        if self.streaming and self.max_steps is None:
            yield "--streaming needs --max-steps: a stream does not tell its length."
        parse_objective(self.objective)

    @property
    def stages(self) -> dict[str, dict[str, float]]:
        """The stages one after the other, each with the weights of what it learns at once."""
        return parse_objective(self.objective)


def choose_precision(precision: Precision) -> Precision:
    """Return `"float32"` or `"bfloat16"`: what was asked for, or what the processor has units for.

    Those are the GPUs of Nvidia since Ampere and the CPUs with AMX. Of a CPU with AVX-512 alone
    bfloat16 costs more in conversions than it saves; without that it is many times slower.
    """
    if precision != "auto":
        return precision
    if torch.accelerator.is_available():
        is_gpu = torch.cuda.is_available()
        has_units = is_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_units = torch.cpu._is_amx_tile_supported()
    return "bfloat16" if has_units else "float32"


def build_pretraining_config(
    arguments: PretrainingArguments,
    heads: dict[str, dict[str, str | int]],
    *,
    checkpoint: Checkpoint | None = None,
) -> RMatConfig:
    """Return the architecture to pretrain: that of a checkpoint or the default, and overrides."""
    own = {"num_molecule_descriptors": 0, "pretraining_heads": heads}
    source, known = arguments.model_config, RMatConfig.list_architecture_fields()
    default = PRETRAINING_ARCHITECTURE
    if checkpoint is not None:
        default = checkpoint.config.get_architecture()
    overrides = load_json_fields(source, known=known)
    return build_config(default, overrides=overrides, own=own, source=source)


def build_stage_arguments(
    arguments: PretrainingArguments, stage_dir: Path, *, is_all_learned: bool
) -> TrainingArguments:
    """Return the `TrainingArguments` of a stage, overridden by `--training-arguments`."""
    # a share of 1 would be a number of steps to `Trainer`
    share = min(1 / arguments.num_evaluations, 1 - 1e-9)
    has_accelerator = torch.accelerator.is_available()
    return build_trainer_arguments(
        TrainingArguments,
        arguments,
        folder=stage_dir,
        # an item of the data sets is a batch
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        max_steps=arguments.max_steps,
        bf16=choose_precision(arguments.precision) == "bfloat16",
        use_cpu=not has_accelerator,
        eval_strategy="steps",
        eval_steps=share,
        save_strategy="steps",
        save_steps=share,
        logging_steps=share / LOGS_PER_EVALUATION,
        dataloader_num_workers=arguments.num_workers,
        dataloader_pin_memory=has_accelerator,
        # every process reads whole batches of a stream
        accelerator_config={"dispatch_batches": False},
        ddp_find_unused_parameters=not is_all_learned,
        remove_unused_columns=False,
    )
