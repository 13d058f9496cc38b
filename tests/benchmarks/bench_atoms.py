"""Labels of atoms, logP contributions and partial charges, learned with the stock Trainer.

    python tests/benchmarks/bench_atoms.py TABLE.csv [SPLIT COLUMN]

TABLE has `smiles` and a column of the words train, valid and test. Labels are RDKit's: Crippen's
contributions to logP and Gasteiger's charges. Beside the model stand the mean of each element and
that of each combination of the model's own atom features, on the atoms of train.
"""

import sys
import tempfile
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors, rdPartialCharges
from sklearn.metrics import r2_score, root_mean_squared_error
from transformers import (
    AutoModelForTokenClassification,
    AutoProcessor,
    Trainer,
    TrainingArguments,
)

from rmat_hf import checkpoint_path

LABELS = ["logP contribution", "partial charge (e)"]
ARGUMENTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "num_train_epochs": 20,
    "per_device_train_batch_size": 32,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 0,
}


def compute_labels(mol: Chem.Mol) -> list[list[float | None]]:
    """Return both labels of every heavy atom, in the order of the molecule."""
    rdPartialCharges.ComputeGasteigerCharges(mol)
    charges = [atom.GetDoubleProp("_GasteigerCharge") for atom in mol.GetAtoms()]
    contributions = [log_p for log_p, _ in rdMolDescriptors._CalcCrippenContribs(mol)]
    pairs = zip(contributions, charges, strict=True)
    return [[value if np.isfinite(value) else None for value in pair] for pair in pairs]


def predict_means(keys: pd.Series, train: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean label of each key on train; of an unknown key the mean of all."""
    means = pd.DataFrame(labels[train]).groupby(keys[train].to_numpy()).mean()
    return means.reindex(keys).fillna(means.mean()).to_numpy()


def main(table: str, split_column: str = "split_0") -> None:
    rows = pd.read_csv(table)
    name = checkpoint_path("rmat-small")
    processor = AutoProcessor.from_pretrained(name)
    dataset = Dataset.from_list(
        [
            processor.featurize(smiles)[0] | {"labels": compute_labels(Chem.MolFromSmiles(smiles))}
            for smiles in rows["smiles"]
        ]
    )
    parts = {
        part: np.flatnonzero(rows[split_column] == part) for part in ("train", "valid", "test")
    }
    labels = [np.array(values, dtype=float) for values in dataset["labels"]]
    of_train = np.concatenate([labels[row] for row in parts["train"]])
    model = AutoModelForTokenClassification.from_pretrained(
        name,
        id2label=dict(enumerate(LABELS)),
        problem_type="regression",
        label_mean=np.nanmean(of_train, axis=0).tolist(),
        label_std=np.nanstd(of_train, axis=0).tolist(),
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(folder, **ARGUMENTS),
            processing_class=processor,
            train_dataset=dataset.select(parts["train"]),
        )
        trainer.train()
        predicted = trainer.predict(dataset.select(parts["test"])).predictions
    # node 0 is the dummy node; behind the atoms is padding
    sizes = [len(labels[row]) for row in parts["test"]]
    ours = np.concatenate([row[1 : 1 + size] for row, size in zip(predicted, sizes, strict=True)])
    nodes = [np.array(row[1:], dtype=np.uint8) for row in dataset["node_features"]]
    keys = pd.Series([atom.tobytes() for atoms in nodes for atom in atoms])
    elements = pd.Series(
        [a.GetSymbol() for text in rows["smiles"] for a in Chem.MolFromSmiles(text).GetAtoms()]
    )
    part_of_atom = np.repeat(rows[split_column].to_numpy(), [len(values) for values in labels])
    all_labels, train, test = (
        np.concatenate(labels),
        part_of_atom == "train",
        part_of_atom == "test",
    )
    outputs = {
        "mean of the element": predict_means(elements, train, all_labels)[test],
        "mean of the atom features": predict_means(keys, train, all_labels)[test],
        "rmat-small, finetuned": ours,
    }
    lines = [f"{table}, {split_column}: {train.sum()} atoms of train, {test.sum()} of test"]
    for idx, label in enumerate(LABELS):
        known = ~np.isnan(all_labels[test, idx])
        for method, values in outputs.items():
            truth, guess = all_labels[test, idx][known], values[known, idx]
            error = root_mean_squared_error(truth, guess)
            score = f"R2 {r2_score(truth, guess):7.4f}  RMSE {error:.4f}"
            lines.append(f"{label:20}{method:28}{score}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
