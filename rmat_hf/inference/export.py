"""A finetuned model as an ONNX program: it predicts without PyTorch, in the units of the labels."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from rmat_hf.errors import UserError
from rmat_hf.flags import declare_flag, declare_required, validate_flags
from rmat_hf.loading import load_predictor
from rmat_hf.model.configuration_rmat import RMatKernelConfig
from rmat_hf.model.processing_rmat import NODE_INPUTS, RMatProcessor
from rmat_hf.output_folder import create_folder_atomically

ONNX_FILE = "model.onnx"
MAX_DIFFERENCE = 1e-4
# Of one atom to a few dozen, of several fragments, charged: no batch has the sizes of another.
EXAMPLES = (("CC(=O)Oc1ccccc1C(=O)O", "CCO"), ("C",), ("[Na+].[Cl-]", "C" * 40, "c1ccncc1"))


@dataclass(kw_only=True)
class ExportArguments:
    """Everything `run_export` needs to know; each field is a flag of `rmat export`."""

    model: str = declare_required("Folder or Hub id of a finetuned model or ensemble.")
    output_dir: str = declare_required("Folder to write: model.onnx and the processor.")
    revision: str | None = declare_flag(None, "Branch, tag or commit of a model on the Hub.")
    max_difference: float = declare_flag(
        MAX_DIFFERENCE,
        "Largest difference from PyTorch's predictions, in standard deviations of the labels.",
        above=0,
    )

    def __post_init__(self) -> None:
        """Raise a `UserError` for a value out of range."""
        validate_flags(self)


class Export(NamedTuple):
    """What [`export_onnx`] wrote.

    Args:
        path (`Path`): The program.
        max_difference (`float`):
            Largest difference of its predictions from the model's, relative to the standard
            deviation of the label, or of probabilities.
    """

    path: Path
    max_difference: float


def run_export(arguments: ExportArguments) -> Export:
    """Export a model to a folder, the whole of it or nothing.

    The folder holds `model.onnx` and the processor with its code, which need no PyTorch.
    """
    model, processor = load_predictor(arguments.model, revision=arguments.revision, device="cpu")
    output_dir = Path(arguments.output_dir)
    with create_folder_atomically(output_dir) as folder:
        export = export_onnx(
            model, folder / ONNX_FILE, processor=processor, max_difference=arguments.max_difference
        )
        processor.save_pretrained(folder)
    return export._replace(path=output_dir / ONNX_FILE)


def export_onnx(
    model: PreTrainedModel,
    path: str | Path,
    *,
    processor: RMatProcessor,
    max_difference: float = MAX_DIFFERENCE,
) -> Export:
    """Write a finetuned model as an ONNX program, and check that it predicts the same.

    The inputs of the program are the arrays of the processor, for any number of molecules and
    nodes. Its output `predictions`, `(num_molecules, num_labels)` float32, is in the units of the
    labels; of a classification it has probabilities. An ensemble adds `spread` of the same shape,
    the standard deviation of its members. `problem_type`, `labels` and `label_units` stand in the
    program's metadata, as JSON. A model of atoms predicts at every node, `(num_molecules,
    num_nodes, num_labels)`: behind the dummy node the heavy atoms in the order of the SMILES.

    Args:
        model ([`RMatForSequenceClassification`], an ensemble, or [`RMatForTokenClassification`]):
            On the CPU, in float32.
        path (`str` or `Path`): File to write.
        processor ([`RMatProcessor`]): The one saved with the model.
        max_difference (`float`, *optional*, defaults to 1e-4):
            Largest difference between the two, in standard deviations of the label.

    Returns:
        [`Export`]: where it is, and how well it agrees.

    Raises:
        UserError: The extra `onnx` is not installed, the model has a kernel head or label
            transforms, or the program predicts something else; then there is no file.

    Example:
        >>> config = RMatConfig(
        ...     hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        ...     num_labels=1, problem_type="regression"
        ... )
        >>> model, processor = RMatForSequenceClassification(config), RMatProcessor(geometry="2d")
        >>> export = export_onnx(model, folder / "model.onnx", processor=processor)
        >>> export.path.name, export.max_difference < 1e-4
        ('model.onnx', True)
    """
    if isinstance(model.config, RMatKernelConfig):
        raise UserError("A kernel head is no ONNX program. Finetune with --head network.")
    if model.config.label_transforms is not None:
        raise UserError(
            "Labels that are learned as logarithms are not undone in an ONNX program. Finetune on "
            "a column of logarithms, without --label-transform."
        )
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise UserError(f"{error}. Install the extra: pip install 'rmat-hf[onnx]'.") from error
    path, program = Path(path), _Program(model).eval()
    batches = [dict(processor(list(smiles), return_tensors="pt")) for smiles in EXAMPLES]
    with _without_exporter_report():
        torch.onnx.export(
            program,
            (),
            path,
            kwargs=batches[0],
            dynamic_shapes=_name_dynamic_axes(batches[0]),
            input_names=list(batches[0]),
            output_names=program.output_names,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    written = onnx.load(path)
    config = model.config
    facts = {"problem_type": config.problem_type, "labels": config.output_names}
    facts["label_units"] = config.label_units
    onnx.helper.set_model_props(written, {name: json.dumps(it) for name, it in facts.items()})
    onnx.save(written, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference = max(
        _compute_difference(session, program=program, batch=batch) for batch in batches
    )
    if not difference <= max_difference:
        path.unlink()
        raise UserError(
            f"{path}: the program differs from the model by {difference:.2g} standard deviations "
            f"of the label, more than {max_difference:g}. Nothing was kept."
        )
    return Export(path, difference)


class _Program(nn.Module):
    """A model whose outputs are what users read."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        is_ensemble = hasattr(model, "members")
        self.output_names = ["predictions", *(["spread"] if is_ensemble else [])]

    def forward(  # noqa: PLR0917 - the exporter calls it by position
        self,
        node_features: torch.Tensor,
        bond_types: torch.Tensor,
        topological_distances: torch.Tensor,
        interatomic_distances: torch.Tensor,
        attention_mask: torch.Tensor,
        molecule_descriptors: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        inputs = (node_features, bond_types, topological_distances, interatomic_distances)
        options = {"attention_mask": attention_mask}
        if molecule_descriptors is not None:  # which a model of atoms does not know
            options["molecule_descriptors"] = molecule_descriptors
        output, meaning = self.model(*inputs, **options, return_dict=True), self.model.meaning
        predictions = meaning.compute_values(output.logits)
        if "member_logits" not in output:
            return (predictions,)
        values = meaning.compute_values(output.member_logits)
        return predictions, values.std(1, correction=0)


@contextmanager
def _without_exporter_report() -> Iterator[None]:
    """Leave out what the exporter says of libraries and of names that axes share."""
    report = logging.getLogger("torch.onnx")
    level = report.level
    report.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        report.setLevel(level)


def _name_dynamic_axes(batch: dict[str, torch.Tensor]) -> dict[str, dict[int, Any]]:
    molecules = torch.export.Dim("num_molecules", min=1, max=65_536)
    nodes = torch.export.Dim("num_nodes", min=2, max=4096)
    num_node_axes = {name: axes for name, (_, _, axes) in NODE_INPUTS.items()}
    return {
        name: {0: molecules, **{1 + axis: nodes for axis in range(num_node_axes.get(name, 0))}}
        for name in batch
    }


def _compute_difference(
    session: Any, *, program: _Program, batch: dict[str, torch.Tensor]
) -> float:
    """Return the largest difference of outputs, in standard deviations of the label."""
    scale = np.array(program.model.config.label_std or [1.0])
    outputs = session.run(None, {name: value.numpy() for name, value in batch.items()})
    with torch.no_grad():
        expected = program(**batch)
    differences = [
        np.abs(found - tensor.numpy()) / scale
        for found, tensor in zip(outputs, expected, strict=True)
    ]
    return float(np.concatenate(differences).max())
