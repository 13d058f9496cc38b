"""A featurized corpus of a few dozen molecules and the arguments of a pretraining run on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiny import TINY_ARCHITECTURE
from tiny_corpus import write_corpus
from tiny_finetuning import write_json

from rmat_hf.data.assay_labels import AssayLabels
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.pretraining_arguments import PretrainingArguments

DESCRIPTORS = ["MolWt", "MolLogP", "TPSA", "NumHDonors", "FractionCSP3"]
# from 2 to 18 heavy atoms, in no order of size
CORPUS_SMILES = [
    f"{left}{middle}{right}"
    for middle in ("C", "c1ccc(cc1)", "C(=O)N", "C1CCN(CC1)", "CC#C", "c1cc(sc1)")
    for left in ("C", "CCO", "FC(F)", "N#C", "CCCCCC", "Clc1ccc(cc1)")
    for right in ("C", "O", "CCN")
]
ARCHITECTURE = {
    name: value
    for name, value in TINY_ARCHITECTURE.items()
    if name not in ("num_atom_contexts", "num_descriptor_labels")
}


def write_pretraining_corpus(
    folder: Path,
    smiles: list[str] | None = None,
    *,
    descriptors: list[str] | None = DESCRIPTORS,
    shard_size: int = 24,
    labels: Mapping[str, AssayLabels] | None = None,
) -> Path:
    """Write shards of molecules with geometry bounds and some descriptors."""
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=descriptors)
    options: dict[str, Any] = {"shard_size": shard_size, "processor": processor, "labels": labels}
    return write_corpus(folder, smiles or CORPUS_SMILES, **options)


def build_pretraining_arguments(folder: Path, **options: Any) -> PretrainingArguments:
    """Return the arguments of a run of seconds: `folder/corpus` → `folder/run`.

    Args:
        folder (`Path`): An existing folder; a corpus is written into it unless it has one.
        options: Fields of [`PretrainingArguments`].
    """
    corpus = folder / "corpus"
    if "corpus" not in options and not corpus.is_dir():
        write_pretraining_corpus(corpus)
    fields: dict[str, Any] = {
        "corpus": str(corpus),
        "output_dir": str(folder / "run"),
        "min_context_count": 2,
        "valid_fraction": 0.2,
        "num_train_epochs": 2,
        "batch_size": 16,
        "max_pairs": 2048,
        "num_evaluations": 2,
        "learning_rate": 3e-3,
    }
    if options.get("model", "scratch") == "scratch":
        fields["model_config"] = write_json(folder / "architecture.json", ARCHITECTURE)
    return PretrainingArguments(**{**fields, **options})
