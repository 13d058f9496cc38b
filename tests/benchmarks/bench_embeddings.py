"""Frozen vectors of a model beside fingerprints and descriptors, under the same models.

    python tests/benchmarks/bench_embeddings.py MODEL FOLDER OUT.json

FOLDER holds CSV files with `smiles`, `y` and the columns `split_0`, `split_1` and so on. For every
split, settings are chosen on valid and test is scored once. RMSE for numbers, ROC AUC for classes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score, root_mean_squared_error
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from rmat_hf import embed
from rmat_hf.model.features_rmat import (
    compute_molecule_descriptors,
    list_molecule_descriptor_names,
)

CLASSIFICATIONS = {"bbbp", "estrogen-beta"}
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
GAMMA_FACTORS = (0.1, 0.3, 1.0, 3.0)
STRENGTHS = (1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
LARGEST_FEATURE = 8.0  # standard deviations


def compute_features(smiles: list[str], model: str) -> dict[str, np.ndarray]:
    mols = [Chem.MolFromSmiles(text) for text in smiles]
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    names = list_molecule_descriptor_names()
    return {
        "frozen R-MAT": embed(model, smiles).values,
        "ECFP4 counts": np.array([generator.GetCountFingerprintAsNumPy(mol) for mol in mols]),
        "RDKit descriptors": np.array([compute_molecule_descriptors(mol, names) for mol in mols]),
    }


def prepare(features: np.ndarray, train: np.ndarray) -> np.ndarray:
    known = features[:, ~np.isnan(features[train]).all(axis=0)].astype(np.float64)
    filled = np.where(np.isnan(known), np.nanmedian(known[train], axis=0), known)
    scaled = StandardScaler().fit(filled[train]).transform(filled)
    return np.clip(scaled, -LARGEST_FEATURE, LARGEST_FEATURE)


def build_models(family: str, *, features: np.ndarray, is_classification: bool) -> list[Any]:
    if family == "linear":
        if is_classification:
            return [LogisticRegression(C=1 / s, max_iter=2000) for s in STRENGTHS]
        return [Ridge(alpha=strength) for strength in STRENGTHS]
    scale = 1.0 / (features.shape[1] * features.var())
    kind = SVC if is_classification else SVR
    return [kind(C=c, gamma=factor * scale) for c in PENALTIES for factor in GAMMA_FACTORS]


def score(model: Any, features: np.ndarray, labels: np.ndarray) -> float:
    """RMSE, or minus the ROC AUC: less is better."""
    if hasattr(model, "decision_function"):
        return -float(roc_auc_score(labels, model.decision_function(features)))
    return float(root_mean_squared_error(labels, model.predict(features)))


def run(path: Path, model: str) -> dict[str, Any]:
    table = pd.read_csv(path)
    is_classification = path.stem in CLASSIFICATIONS
    labels = table["y"].to_numpy(dtype=np.float64)
    results: dict[str, Any] = {}
    splits = [column for column in table if column.startswith("split_")]
    # the splits of these are one and the same
    splits = splits[:1] if is_classification else splits
    for name, raw in compute_features(table["smiles"].tolist(), model).items():
        for family in ("linear", "SVM"):
            chosen = []
            for split in splits:
                rows = {p: np.flatnonzero(table[split] == p) for p in ("train", "valid", "test")}
                features = prepare(raw, rows["train"])
                train = features[rows["train"]]
                trials = []
                for candidate in build_models(
                    family, features=train, is_classification=is_classification
                ):
                    candidate.fit(train, labels[rows["train"]])
                    scores = {p: score(candidate, features[r], labels[r]) for p, r in rows.items()}
                    trials.append(scores)
                chosen.append(min(trials, key=lambda scores: scores["valid"]))
            results[f"{name}, {family}"] = {
                part: [abs(scores[part]) for scores in chosen] for part in ("valid", "test")
            }
    return results


def main(model: str, folder: str, output: str) -> None:
    results = {path.stem: run(path, model) for path in sorted(Path(folder).glob("*.csv"))}
    Path(output).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for name, methods in results.items():
        for method, parts in methods.items():
            text = ", ".join(
                f"{part} {np.mean(values):.3f} ± {np.std(values):.3f}"
                for part, values in parts.items()
            )
            sys.stdout.write(f"{name:15}{method:26}{text}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
