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
    set_seed,
)

from rmat_hf import checkpoint_path, compute_label_scaling

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


def run(table: str, split_column: str = "split_0") -> pd.DataFrame:
    """Return R2 and RMSE on the atoms of test, by label and method."""
    molecules = pd.read_csv(table)
    mols = [Chem.MolFromSmiles(smiles) for smiles in molecules["smiles"]]
    labels = [compute_labels(mol) for mol in mols]
    name = checkpoint_path("rmat-small")
    processor = AutoProcessor.from_pretrained(name)
    # the processor keeps the order of the atoms
    rows = Dataset.from_list(
        [
            processor.featurize(smiles)[0] | {"labels": of_molecule}
            for smiles, of_molecule in zip(molecules["smiles"], labels, strict=True)
        ]
    )
    train, test = (np.flatnonzero(molecules[split_column] == part) for part in ("train", "test"))
    set_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(
        name,
        id2label=dict(enumerate(LABELS)),
        problem_type="regression",
        **compute_label_scaling([labels[row] for row in train]),
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(folder, **ARGUMENTS),
            processing_class=processor,
            train_dataset=rows.select(train),
        )
        trainer.train()
        predicted = trainer.predict(rows.select(test)).predictions
    # node 0 is the dummy node; behind the atoms is padding
    nodes = zip(predicted, test, strict=True)
    outputs = np.concatenate([values[1 : 1 + len(labels[row])] for values, row in nodes])
    atoms = pd.DataFrame(np.concatenate([np.array(it, dtype=float) for it in labels]))
    atoms["row"] = np.repeat(np.arange(len(labels)), [len(it) for it in labels])
    atoms["element"] = [atom.GetAtomicNum() for mol in mols for atom in mol.GetAtoms()]
    nodes = (np.array(it, dtype=np.uint8)[1:] for it in rows["node_features"])
    atoms["features"] = [node.tobytes() for of_molecule in nodes for node in of_molecule]
    known, asked = atoms[atoms["row"].isin(train)], atoms[atoms["row"].isin(test)]
    scores = {}
    for idx, label in enumerate(LABELS):
        guesses = {
            f"mean of its {key}": asked[key].map(known.groupby(key)[idx].mean())
            for key in ("element", "features")
        }
        guesses["rmat-small, finetuned"] = pd.Series(outputs[:, idx], index=asked.index)
        for method, values in guesses.items():
            guess = values.fillna(known[idx].mean())[asked[idx].notna()]
            truth = asked[idx].dropna()
            error = root_mean_squared_error(truth, guess)
            scores[label, method] = {"R2": r2_score(truth, guess), "RMSE": error}
    return pd.DataFrame(scores).T


if __name__ == "__main__":
    sys.stdout.write(f"{run(*sys.argv[1:]).round(4).to_string()}\n")
