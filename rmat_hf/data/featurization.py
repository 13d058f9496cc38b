"""Featurize a whole data set once, before the first epoch."""

import logging
from typing import Any

import numpy as np
from datasets import Dataset
from rdkit import Chem

from rmat_hf.data.loading import DroppedRow
from rmat_hf.processing_rmat import RMatProcessor

logger = logging.getLogger(__name__)

# Arrays of `RMatProcessor.featurize` that hold one value per pair of nodes.
PAIR_FEATURES = {
    "bond_types": np.uint8,
    "topological_distances": np.uint8,
    "interatomic_distances": np.float32,
}


def pack_features(features: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the features of one molecule as bytes, the form that a table stores and reads fastest.

    Args:
        features (`dict[str, np.ndarray]`): As from `RMatProcessor.featurize`.
    """
    packed: dict[str, Any] = {name: array.tobytes() for name, array in features.items()}
    return {**packed, "num_nodes": len(features["node_features"])}


def unpack_features(row: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays of a row made by `pack_features`; the other columns are left out."""
    num_nodes = row["num_nodes"]
    features = {
        name: np.frombuffer(row[name], dtype=dtype).reshape(num_nodes, num_nodes)
        for name, dtype in PAIR_FEATURES.items()
    }
    node_features = np.frombuffer(row["node_features"], dtype=np.uint8)
    features["node_features"] = node_features.reshape(num_nodes, -1)
    if "molecule_descriptors" in row:
        features["molecule_descriptors"] = np.frombuffer(
            row["molecule_descriptors"], dtype=np.float32
        )
    return features


def featurize_dataset(
    dataset: Dataset, processor: RMatProcessor, *, num_workers: int = 1
) -> tuple[Dataset, list[DroppedRow]]:
    """Add the features of every molecule to a data set.

    Args:
        dataset (`datasets.Dataset`): With the columns of `load_training_table`.
        processor (`RMatProcessor`): Decides the geometry.
        num_workers (`int`, *optional*, defaults to 1): Processes.

    Returns:
        The data set with the packed features and `geometry_source`, without the rows that could
        not be featurized, and those rows with their reasons.
    """

    def featurize_row(row: dict[str, Any]) -> dict[str, Any]:
        molecule = Chem.Mol(row["mol"]) if row.get("mol") is not None else row["smiles"]
        try:
            features, source = processor.featurize(molecule)
        except ValueError as error:
            return {**_EMPTY, **empty_descriptors, "failure": str(error)}
        return {**pack_features(features), "geometry_source": source, "failure": ""}

    empty_descriptors = {"molecule_descriptors": b""} if processor.molecule_descriptors else {}
    featurized = dataset.map(
        featurize_row, num_proc=num_workers if num_workers > 1 else None, desc="Featurizing"
    )
    failures = featurized["failure"]
    dropped = [
        DroppedRow(row, smiles, failure)
        for row, smiles, failure in zip(dataset["row"], dataset["smiles"], failures, strict=True)
        if failure
    ]
    kept = [position for position, failure in enumerate(failures) if not failure]
    step_downs = [s for s in featurized["geometry_source"] if "step down" in s]
    if step_downs:
        logger.warning("%d molecules stepped down to another geometry.", len(step_downs))
    return featurized.select(kept).remove_columns("failure"), dropped


_EMPTY = {
    **dict.fromkeys(("node_features", *PAIR_FEATURES), b""),
    "num_nodes": 0,
    "geometry_source": "",
}
