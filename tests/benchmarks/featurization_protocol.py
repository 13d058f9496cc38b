"""Featurization by the protocol of the 2021 publication, written from its description.

Hydrogens are added, the molecule is embedded and relaxed by UFF, the hydrogens are removed;
shortest paths come from the Floyd-Warshall algorithm in Python, everything is one-hot in float64.
"""

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

MAX_ATTEMPTS = 5000
ELEMENTS = (5, 6, 7, 8, 9, 15, 16, 17, 35, 53, 999)
MAX_ORDER = 4


def featurize_by_protocol(smiles: str, *, seed: int = 0) -> dict[str, np.ndarray] | None:
    """Return dense arrays with a dummy node in front; `None` if the embedding fails."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if rdDistGeom.EmbedMolecule(mol, maxAttempts=MAX_ATTEMPTS, randomSeed=seed) == -1:
        return None
    if rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
        rdForceFieldHelpers.UFFOptimizeMolecule(mol)
    mol = Chem.RemoveHs(mol)
    num_nodes = mol.GetNumAtoms() + 1
    distances = np.full((num_nodes, num_nodes), 1e6)
    positions = mol.GetConformer().GetPositions()
    distances[1:, 1:] = np.sqrt(((positions[:, None] - positions[None]) ** 2).sum(-1))
    return {
        "node_features": build_node_features(mol),
        "bond_features": build_bond_features(mol),
        "neighborhood": build_neighborhood(mol),
        "distances": distances,
    }


def build_node_features(mol: Chem.Mol) -> np.ndarray:
    rows = []
    for atom in mol.GetAtoms():
        row = one_hot(atom.GetAtomicNum(), ELEMENTS)
        row += one_hot(len(atom.GetNeighbors()), (0, 1, 2, 3, 4, 5))
        row += one_hot(atom.GetTotalNumHs(), (0, 1, 2, 3, 4))
        row += one_hot(atom.GetFormalCharge(), tuple(range(-5, 6)))
        rows.append([*row, atom.IsInRing(), atom.GetIsAromatic()])
    features = np.zeros((len(rows) + 1, 2 + len(rows[0])))
    features[0, 1] = 1
    features[1:, 2:] = np.array(rows, dtype=np.float64)
    return features


def build_bond_features(mol: Chem.Mol) -> np.ndarray:
    num_nodes = mol.GetNumAtoms() + 1
    features = np.zeros((8, num_nodes, num_nodes))
    for bond in mol.GetBonds():
        row = [0, *one_hot(bond.GetBondTypeAsDouble(), (1.0, 1.5, 2.0, 3.0))]
        row += [bond.GetIsAromatic(), bond.GetIsConjugated(), bond.IsInRing()]
        begin, end = bond.GetBeginAtomIdx() + 1, bond.GetEndAtomIdx() + 1
        features[:, begin, end] = features[:, end, begin] = row
    return features


def build_neighborhood(mol: Chem.Mol) -> np.ndarray:
    num_atoms = mol.GetNumAtoms()
    paths = run_floyd_warshall(Chem.GetAdjacencyMatrix(mol))
    classes = np.full((num_atoms + 1, num_atoms + 1), MAX_ORDER + 1)
    for i in range(num_atoms):
        for j in range(num_atoms):
            if paths[i][j] < np.inf:
                classes[i + 1, j + 1] = min(paths[i][j], MAX_ORDER)
    return np.stack([classes == order for order in range(MAX_ORDER + 2)]).astype(np.float64)


def run_floyd_warshall(adjacency: np.ndarray) -> np.ndarray:
    num_atoms = len(adjacency)
    paths = np.where(adjacency > 0, 1.0, np.inf)
    np.fill_diagonal(paths, 0.0)
    for k in range(num_atoms):
        for i in range(num_atoms):
            for j in range(num_atoms):
                paths[i][j] = min(paths[i][j], paths[i][k] + paths[k][j])
    return paths


def one_hot(value: float, classes: tuple[float, ...]) -> list[bool]:
    if value not in classes:
        value = classes[-1]
    return [value == choice for choice in classes]
