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
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import get_scorer
from sklearn.svm import SVC, SVR

from rmat_hf import embed
from rmat_hf.training.baselines import (
    BASELINES,
    SVM,
    compute_descriptors,
    compute_fingerprints,
    standardize_descriptors,
)

CLASSIFICATIONS = {"bbbp", "estrogen-beta"}
STRENGTHS = (1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)


def compute_features(smiles: list[str], model: str) -> dict[str, np.ndarray]:
    mols = [Chem.MolFromSmiles(text) for text in smiles]
    return {
        "frozen R-MAT": embed(model, smiles).values,
        "ECFP4 counts": compute_fingerprints(mols),
        "RDKit descriptors": compute_descriptors(mols),
    }


def build_models(family: str, *, features: np.ndarray, is_classification: bool) -> list[Any]:
    if family == "linear":
        if is_classification:
            return [LogisticRegression(C=1 / s, max_iter=2000) for s in STRENGTHS]
        return [Ridge(alpha=strength) for strength in STRENGTHS]
    scale = 1.0 / (features.shape[1] * features.var())
    kind = SVC if is_classification else SVR
    grid = BASELINES[SVM].grid
    return [kind(C=c, gamma=it * scale) for c in grid["penalty"] for it in grid["gamma_factor"]]


def run(path: Path, model: str) -> dict[str, Any]:
    table = pd.read_csv(path)
    is_classification = path.stem in CLASSIFICATIONS
    labels = table["y"].to_numpy(dtype=np.float64)
    score = get_scorer("roc_auc" if is_classification else "neg_root_mean_squared_error")
    results: dict[str, Any] = {}
    splits = [column for column in table if column.startswith("split_")]
    # the splits of these are one and the same
    splits = splits[:1] if is_classification else splits
    for name, raw in compute_features(table["smiles"].tolist(), model).items():
        for family in ("linear", "SVM"):
            chosen = []
            for split in splits:
                rows = {p: np.flatnonzero(table[split] == p) for p in ("train", "valid", "test")}
                features = standardize_descriptors(raw.astype(np.float64), train=rows["train"])
                train = features[rows["train"]]
                trials = []
                for candidate in build_models(
                    family, features=train, is_classification=is_classification
                ):
                    candidate.fit(train, labels[rows["train"]])
                    found = {
                        p: score(candidate, features[it], labels[it]) for p, it in rows.items()
                    }
                    trials.append(found)
                chosen.append(max(trials, key=lambda scores: scores["valid"]))
            results[f"{name}, {family}"] = {
                part: [abs(scores[part]) for scores in chosen] for part in ("valid", "test")
            }
    return results


def main(model: str, folder: str, output: str) -> None:
    results = {path.stem: run(path, model) for path in sorted(Path(folder).glob("*.csv"))}
    Path(output).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for name, methods in results.items():
        for method, parts in methods.items():
            texts = [f"{p} {np.mean(it):.3f} ± {np.std(it):.3f}" for p, it in parts.items()]
            sys.stdout.write(f"{name:15}{method:26}{', '.join(texts)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
