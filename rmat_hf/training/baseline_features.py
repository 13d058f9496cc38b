"""What the classical baselines see of a molecule: a fingerprint or descriptors."""

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from sklearn.preprocessing import StandardScaler

from rmat_hf.model.features_rmat import (
    compute_molecule_descriptors,
    list_molecule_descriptor_names,
)

FINGERPRINT_RADIUS = 2
FINGERPRINT_SIZE = 2048
LARGEST_DESCRIPTOR = 8.0  # standard deviations


def compute_fingerprints(mols: list[Chem.Mol]) -> np.ndarray:
    """Return ECFP4 counts, float32 `(num_mols, 2048)` (doi 10.1021/ci100050t)."""
    generator = rdFingerprintGenerator.GetMorganGenerator(
        radius=FINGERPRINT_RADIUS, fpSize=FINGERPRINT_SIZE
    )
    return np.array([generator.GetCountFingerprintAsNumPy(mol) for mol in mols], dtype=np.float32)


def compute_descriptors(mols: list[Chem.Mol]) -> np.ndarray:
    """Return RDKit's 2D descriptors, float64 `(num_mols, num_descriptors)`, NaN where undefined."""
    names = list_molecule_descriptor_names()
    rows = [compute_molecule_descriptors(mol, names) for mol in mols]
    return np.array(rows, dtype=np.float64)


def prepare_descriptors(descriptors: np.ndarray, *, train: np.ndarray) -> np.ndarray:
    """Impute, standardize and clip descriptors with the statistics of the train rows.

    Args:
        descriptors (`np.ndarray` of shape `(num_rows, num_descriptors)`): NaN where undefined.
        train (`np.ndarray`): Indices of the train rows.

    Returns:
        `np.ndarray` of shape `(num_rows, num_known)`, without descriptors that are undefined on
        all train rows.
    """
    known = descriptors[:, ~np.isnan(descriptors[train]).all(axis=0)]
    filled = np.where(np.isnan(known), np.nanmedian(known[train], axis=0), known)
    standardized = StandardScaler().fit(filled[train]).transform(filled)
    return np.clip(standardized, -LARGEST_DESCRIPTOR, LARGEST_DESCRIPTOR)
