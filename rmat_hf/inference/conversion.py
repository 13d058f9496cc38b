"""The authors' published weights as a model of this package."""

from pathlib import Path
from typing import NamedTuple

import torch

from rmat_hf.errors import explained_writing
from rmat_hf.inference.authors_checkpoint import (
    AUTHORS_POOLINGS,
    Pooling,
    convert_config,
    convert_state_dict,
    load_authors_config,
    load_authors_weights,
)
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification, RMatModel
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.output_folder import create_folder_atomically

# May be missing from the weights: the published file has no pooling and no head.
_OPTIONAL_PARTS = ("classifier.", "rmat.pooler.", "descriptor_scaler.")


class Conversion(NamedTuple):
    """A converted model, and what the source did not contain.

    Args:
        model (`RMatForSequenceClassification` or `RMatModel`):
            In evaluation mode; the encoder alone if the weights have no prediction head.
        untrained (`list[str]`): Parameters that were not in the weights; `save` leaves them out.
        notes (`list[str]`): One sentence for each part that was missing from the weights.
    """

    model: RMatForSequenceClassification | RMatModel
    untrained: list[str]
    notes: list[str]

    def save(self, output_dir: str | Path) -> None:
        """Write a model folder: weights, config and a processor with the authors' geometry.

        Args:
            output_dir (`str` or `Path`): New or empty folder; nothing is written on an error.

        Raises:
            UserError: If the folder has files in it, or cannot be written.
        """
        target = Path(output_dir)
        way_out = "Make room on the disk, or choose another folder."
        with (
            explained_writing(target, way_out=way_out),
            create_folder_atomically(target) as folder,
        ):
            state_dict = self.model.state_dict()
            for name in self.untrained:
                del state_dict[name]
            self.model.save_pretrained(folder, state_dict=state_dict)
            build_authors_processor().save_pretrained(folder)


def build_authors_processor() -> RMatProcessor:
    """Return a processor with the geometry of the authors: with hydrogens, relaxed with UFF."""
    return RMatProcessor(geometry="conformer", conformer_hydrogens=True, force_field="uff")


def convert_checkpoint(
    weights: str | Path,
    config: str | Path,
    *,
    pooling: Pooling | None = None,
) -> Conversion:
    """Convert weights of the authors' code (gmum/huggingmolecules) to a model of this package.

    Args:
        weights (`str` or `Path`): `.pt` (read with `weights_only=True`) or `.safetensors`.
        config (`str` or `Path`): The authors' JSON configuration.
        pooling (`str`, *optional*): Overrides the pooling. By default the one in the weights, or
            `"mean"` if they contain none, as the published file does.

    Returns:
        [`Conversion`] with the model and a note on every part that the weights lack.

    Raises:
        ValueError: If a file cannot be read or the two do not belong together.
    """
    state_dict = load_authors_weights(weights)
    authors_config = load_authors_config(config)
    trained_pooling = AUTHORS_POOLINGS[authors_config.get("generator_aggregation", "grover")]
    has_pooling = trained_pooling != "attention" or any("att_net" in name for name in state_dict)
    notes = []
    if pooling is None and not has_pooling:
        notes.append("The weights contain no pooling: the model uses mean pooling.")
    elif pooling == "attention" and not has_pooling:
        notes.append("The weights contain no pooling: the attention pooling starts untrained.")
    pooling = pooling or (trained_pooling if has_pooling else "mean")
    has_head = any(name.startswith("generator.proj.") for name in state_dict)
    if has_head and pooling != trained_pooling:
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith("generator.")}
        notes.append(
            "The head was trained on another pooling and was left out: finetune the model."
        )
    elif not has_head:
        notes.append("The weights contain no prediction head: finetune the model before use.")

    model = RMatForSequenceClassification(convert_config(authors_config, pooling=pooling))
    converted = convert_state_dict(state_dict, num_code_features=model.config.num_code_features)
    untrained = _load_converted(model.eval(), converted)
    if not any(name.startswith("classifier.") for name in untrained):
        return Conversion(model, untrained, notes)
    encoder = [name.removeprefix("rmat.") for name in untrained if name.startswith("rmat.")]
    return Conversion(model.rmat, encoder, notes)


def _load_converted(
    model: RMatForSequenceClassification, converted: dict[str, torch.Tensor]
) -> list[str]:
    """Load the weights; return the parameters that they do not contain."""
    expected = model.state_dict()
    wrong = [n for n, t in converted.items() if n not in expected or expected[n].shape != t.shape]
    untrained = [name for name in expected if name not in converted]
    needed = [name for name in untrained if not name.startswith(_OPTIONAL_PARTS)]
    if wrong or needed:
        raise ValueError(
            f"Weights and configuration do not belong together: {(wrong + needed)[0]!r} "
            f"({len(wrong)} of another shape, {len(needed)} missing)."
        )
    model.load_state_dict(converted, strict=False)
    return untrained
