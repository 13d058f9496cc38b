"""What a benchmark runs: molecules of a table, a model, and the steps to measure."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch

from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.sources import open_table
from rmat_hf.data.stored_features import count_nodes, group_by_length
from rmat_hf.data.tables import validate_columns
from rmat_hf.errors import UserError
from rmat_hf.flags import declare_flag, validate_flags
from rmat_hf.inference.prediction import Molecule, embed, predict
from rmat_hf.loading import read_checkpoint
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.arguments import SCRATCH, SCRATCH_ARCHITECTURE
from rmat_hf.training.trainer import RMatDataCollator

logger = logging.getLogger(__name__)

CHUNK_SIZE = 1000
# Sizes that `--model` knows by name; their weights are random.
MODEL_SIZES: dict[str, dict[str, Any]] = {
    SCRATCH: SCRATCH_ARCHITECTURE,
    "small": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
    },
    "published": {},
}


BenchmarkStep = Literal["featurize", "predict", "embed", "forward", "train"]
BenchmarkDtype = Literal["float32", "bfloat16"]


@dataclass(kw_only=True)
class BenchmarkArguments:
    """Everything `run_benchmark` needs to know; each field is a flag of `make bench-machine`."""

    model: str = declare_flag(
        SCRATCH, "Model folder, Hub id, or random weights of a size: scratch, small or published."
    )
    revision: str | None = declare_flag(None, "Branch, tag or commit of a model on the Hub.")
    input: str = declare_flag("freesolv", "CSV, Parquet or SDF file, bundled name or Hub data set.")
    smiles_column: str = declare_flag("smiles", "Column with the SMILES.")
    num_molecules: int = declare_flag(
        256, "Molecules to measure with, evenly spaced over the table."
    )
    what: list[str] = declare_flag(
        list(get_args(BenchmarkStep)),
        f"What to measure, of {', '.join(get_args(BenchmarkStep))}.",
        choices=get_args(BenchmarkStep),
    )
    batch_size: int = declare_flag(32, "Molecules in a batch.")
    num_workers: int = declare_flag(0, "Processes that featurize beside the one that computes.")
    geometry: str | None = declare_flag(None, "Where distances come from. Default: the model's.")
    device: str | None = declare_flag(
        None, "Torch device. Default: the accelerator if there is one."
    )
    dtype: BenchmarkDtype = declare_flag("float32", "Precision; bfloat16 is by autocast.")
    repeats: int = declare_flag(3, "Timed passes over the molecules, after one that is not timed.")
    output_json: str | None = declare_flag(
        None, "JSON file to write beside the table on the screen."
    )

    def __post_init__(self) -> None:
        """Raise a `ValueError` for an unknown choice or a count that is too small."""
        if not self.what:
            raise ValueError(f"--what is empty. Known: {list(get_args(BenchmarkStep))}.")
        validate_flags(self)


@dataclass(frozen=True)
class Workload:
    """The molecules that have features, and the model to run on them.

    Args:
        arguments (`BenchmarkArguments`): Batches, workers and precision.
        model (`RMatForSequenceClassification`): On its device.
        processor (`RMatProcessor`): Featurizes for this model.
        molecules (`list[str | Chem.Mol]`): Molecules without the ones that have no features.
        features (`list[bytes]`): Their packed features.
    """

    arguments: BenchmarkArguments
    model: RMatForSequenceClassification
    processor: RMatProcessor
    molecules: list[Molecule]
    features: list[bytes]

    @property
    def num_nodes(self) -> np.ndarray:
        """Heavy atoms and dummy node of every molecule."""
        return np.array(count_nodes(self.features))


def load_molecules(arguments: BenchmarkArguments) -> list[Molecule]:
    """Return different molecules of the table, evenly spaced over its rows.

    Raises:
        UserError: If the table cannot be read or has too few rows.
    """
    table = open_table(arguments.input)
    validate_columns(table.column_names, [arguments.smiles_column], source=table.source)
    if table.num_rows < arguments.num_molecules:
        raise UserError(
            f"{table.source} has {table.num_rows} rows, fewer than --num-molecules "
            f"{arguments.num_molecules}. Ask for at most that many."
        )
    positions = np.linspace(0, table.num_rows - 1, arguments.num_molecules).round().astype(int)
    chosen = set(positions.tolist())
    molecules: list[Molecule] = []
    start = 0
    for chunk in table.iterate_chunks(CHUNK_SIZE):
        rows = chunk.molecules(arguments.smiles_column)
        molecules += [row for position, row in enumerate(rows, start) if position in chosen]
        start += len(rows)
    return list(dict.fromkeys(molecules))


def build_benchmark_model(
    arguments: BenchmarkArguments,
) -> tuple[RMatForSequenceClassification, RMatProcessor]:
    """Return a model, saved or of a named size, and its processor.

    Raises:
        UserError: If there is no such model.
    """
    options: dict[str, Any] = {}
    if arguments.geometry is not None:
        options["geometry"] = arguments.geometry
    if arguments.model in MODEL_SIZES:
        fields = {**MODEL_SIZES[arguments.model], "num_labels": 1, "problem_type": "regression"}
        return RMatForSequenceClassification(RMatConfig(**fields)), RMatProcessor(**options)
    checkpoint = read_checkpoint(arguments.model, revision=arguments.revision)
    processor = checkpoint.load_processor(**options)
    model = checkpoint.load_model(RMatForSequenceClassification)
    if model.descriptor_scaler is None:
        processor.molecule_descriptors = None
    return model, processor


def build_workload(
    arguments: BenchmarkArguments,
    molecules: list[Molecule],
    *,
    model: RMatForSequenceClassification,
    processor: RMatProcessor,
) -> Workload:
    """Featurize the molecules once and leave out those that cannot be.

    Raises:
        UserError: If none is left.
    """
    outcomes = featurize_molecules(molecules, processor, num_workers=arguments.num_workers)
    pairs = zip(molecules, outcomes, strict=True)
    kept = [(molecule, outcome.features) for molecule, outcome in pairs if not outcome.failure]
    if not kept:
        raise UserError(
            f"No molecule of {arguments.input} has features. The first: {outcomes[0].failure}."
        )
    num_left_out = arguments.num_molecules - len(kept)
    if num_left_out:
        logger.warning("Left out %d molecules, repeated or without features.", num_left_out)
    return Workload(
        arguments, model, processor, [pair[0] for pair in kept], [pair[1] for pair in kept]
    )


def build_steps(workload: Workload) -> dict[str, Callable[[], object]]:
    """Return for every step a function that passes over all molecules once."""
    arguments, model, device = workload.arguments, workload.model, workload.model.device
    autocast: Callable[[], AbstractContextManager[object]] = partial(
        torch.autocast,
        device.type,
        dtype=torch.bfloat16,
        enabled=arguments.dtype == "bfloat16",
    )
    batches: list[dict[str, torch.Tensor]] = []
    if {"forward", "train"} & set(arguments.what):
        batches = _build_batches(workload)
    optimizer = torch.optim.AdamW(model.parameters())

    def run_screen(function: Callable[..., object]) -> None:
        with autocast():
            function(
                model,
                workload.molecules,
                processor=workload.processor,
                batch_size=arguments.batch_size,
                num_workers=arguments.num_workers,
            )

    def run_forward() -> None:
        model.eval()
        # one autocast for all batches converts the weights once, as around `predict`
        with torch.inference_mode(), autocast():
            for batch in batches:
                model(**{name: tensor for name, tensor in batch.items() if name != "labels"})

    def run_train() -> None:
        model.train()
        for batch in batches:
            optimizer.zero_grad()
            with autocast():
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()

    return {
        "featurize": lambda: featurize_molecules(
            workload.molecules, workload.processor, num_workers=arguments.num_workers
        ),
        "predict": lambda: run_screen(predict),
        "embed": lambda: run_screen(embed),
        "forward": run_forward,
        "train": run_train,
    }


def _build_batches(workload: Workload) -> list[dict[str, torch.Tensor]]:
    """Return all batches on the device, with random labels that every kind of head can learn.

    Prediction and training group molecules by size too.
    """
    shape = (len(workload.features), len(workload.model.config.label_columns))
    labels = np.random.default_rng(0).integers(0, 2, size=shape)
    collate = RMatDataCollator(workload.processor)
    batches = []
    for positions in group_by_length(
        workload.num_nodes.tolist(), batch_size=workload.arguments.batch_size
    ):
        rows = [{"features": workload.features[i], "labels": labels[i]} for i in positions]
        batch = collate(rows)
        batches.append({name: tensor.to(workload.model.device) for name, tensor in batch.items()})
    return batches


def compute_forward_flops(config: RMatConfig, num_nodes: np.ndarray) -> float:
    """Return the floating-point operations of the layers' matrix products, 2 per multiply-add.

    For a molecule of n nodes, with hidden size h, intermediate size f, head size d and r radial
    basis functions, a layer takes 2 n (4 h² + 2 h f + 3 h d) for its linear layers on nodes and
    2 n² (2 r d + 5 h) for those on pairs and the attention: the radial basis of keys and values,
    and five products between a node, or a pair, and every other. The attention form "reference"
    has one product less of each kind. Embedding, pooling and head are left out, as is padding.

    Args:
        config (`RMatConfig`): Architecture.
        num_nodes (`np.ndarray` of shape `(num_molecules,)`): Heavy atoms and the dummy node.
    """
    hidden_size = config.hidden_size
    head_size = hidden_size // config.num_attention_heads
    # the authors' score has no product of the key of column j with the pair (i, j)
    num_key_products = 0 if config.attention_form == "reference" else 1
    per_node = 4 * hidden_size**2 + 2 * hidden_size * config.intermediate_size
    per_node += (2 + num_key_products) * hidden_size * head_size
    per_pair = 2 * config.num_radial_basis * head_size + (4 + num_key_products) * hidden_size
    counts = num_nodes.astype(np.float64)
    multiply_adds = per_node * counts.sum() + per_pair * (counts**2).sum()
    return float(2 * config.num_hidden_layers * multiply_adds)
