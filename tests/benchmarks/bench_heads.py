"""Heads of a pretrained model beside the strongest baselines, all fitted on train and valid.

    python tests/benchmarks/bench_heads.py TASK DATA OUT.json METHOD ... [-- SEED ... [-- SET ...]]

TASK is `activity` (the sets and test parts of MoleculeACE, with cliff RMSE), `splits` (FreeSolv and
ESOL, six splits), `classes` (BBBP and Estrogen-beta: three times three folds of scaffolds, and the
test part of `split_0`), `curve` (100 to 800 labels), or `large` (assays of more rows than a stack
takes by default: two of five folds of scaffolds). DATA has the folders `activity`,
`mat_benchmark` and `assays`. A METHOD is `stack` (the default of `rmat finetune`, whose kernel head
and forest are scored beside it), `kernel` (a kernel head alone), either with @MODEL behind it (a
folder, or `random` for random weights), a kernel head on what it lists (`vectors+environments`:
vectors and kinds of atoms, without any fingerprint), `finetuned` (`--head network --refit`),
`network` and `stack+network` (these heads), or a name of `rmat_hf.training.baselines.BASELINES`.
What is there already in OUT.json is not computed again.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from sklearn.metrics import roc_auc_score
from versions import write_rows

from rmat_hf import RMatModel, featurize_dataset, finetune
from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.data.splits.registry import split_into_folds
from rmat_hf.data.stored_features import (
    count_nodes,
    expand_features,
    group_by_length,
    pack_dataset,
)
from rmat_hf.loading import Checkpoint, load_processor, read_checkpoint
from rmat_hf.model.features_rmat import FINGERPRINTS, list_molecule_descriptor_names
from rmat_hf.model.stack_rmat import STACK_MEMBERS
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.baselines import BASELINES, fit_baseline
from rmat_hf.training.kernel_head import fit_with_held_out
from rmat_hf.training.stack_head import fit_stack_with_held_out

DEFAULTS = FinetuningArguments(dataset="", label_columns=["y"], output_dir="")
SETS = (
    *("CHEMBL2835_Ki", "CHEMBL2047_EC50", "CHEMBL1871_Ki", "CHEMBL4203_Ki", "CHEMBL1862_Ki"),
    *("CHEMBL237_EC50", "CHEMBL231_Ki", "CHEMBL238_Ki", "CHEMBL287_Ki", "CHEMBL4792_Ki"),
)
CURVE_SETS = ("CHEMBL2047_EC50", "CHEMBL237_EC50", "CHEMBL287_Ki", "esol")
CURVE_SIZES = (100, 200, 400, 800)
LARGE_SETS = ("TOX21_Aromatase_Inhibition", "TOX21_ARE_BLA_agonist_ratio")
CLASSES = "multi_label_classification"
# What is a whole run of `rmat finetune`: its flags.
NETWORKS: dict[str, dict[str, Any]] = {
    "network": {"head": "network"},
    "finetuned": {"head": "network", "refit": True},
    "stack+network": {"head": "stack+network"},
}


@dataclass
class Fold:
    """Rows of a set to fit on and to score, and the family of what was held out."""

    name: str
    known: np.ndarray
    test: np.ndarray
    family: str = "random"


@dataclass
class Table:
    """A set with features of every kind, made once."""

    path: Path
    problem_type: str = "regression"

    def __post_init__(self) -> None:
        if self.path.suffix:
            self.rows = pd.read_csv(self.path).rename(columns={"pact": "y"})
        else:
            names = {"smiles": "smiles", "value": "y"}
            wanted = [("assay", "==", f"toxcast:{self.path.name}")]
            labels = pd.read_parquet(self.path.with_name("assays.parquet"), filters=wanted)
            self.rows = labels[[*names]].rename(columns=names)
        self.labels = self.rows["y"].to_numpy(dtype=float)
        self.features: dict[tuple[str, ...], tuple[Dataset, Any]] = {}

    def featurize(self, kinds: list[str], *, with_forest: bool) -> tuple[Dataset, Any]:
        """Return rows with what kernels of these kinds, or a forest too, compare."""
        counted = [it for it in kinds if it in FINGERPRINTS]
        described = with_forest or "descriptors" in kinds
        key = (*counted, str(described))
        if key not in self.features:
            processor = load_processor(
                read_checkpoint("rmat-small").name,
                fingerprints=counted or None,
                molecule_descriptors=list_molecule_descriptor_names() if described else None,
            )
            table = Dataset.from_dict({name: self.rows[name].tolist() for name in ("smiles", "y")})
            dataset = featurize_dataset(
                table,
                processor,
                label_columns=["y"],
                problem_type=self.problem_type,
                conflict_tolerance=1e9,
            )
            self.features[key] = dataset, processor
        return self.features[key]


def list_folds(task: str, table: Table, seed: int) -> Iterator[Fold]:
    """Yield what is fitted and scored of a set; what a seed draws differs only for some."""
    rows, everything = table.rows, np.arange(len(table.rows))
    if task == "activity":
        is_test = (rows["part"] == "test").to_numpy()
        yield Fold("test", everything[~is_test], everything[is_test])
    elif task == "splits":
        for name in (f"split_{idx}" for idx in range(6)):
            is_test = (rows[name] == "test").to_numpy()
            yield Fold(name, everything[~is_test], everything[is_test])
    elif task in ("classes", "large"):
        most, num_tested = (3, 3) if task == "classes" else (5, 2)
        columns = {"canonical_smiles": rows["smiles"].tolist()}
        folds = split_into_folds(columns, "scaffold", most_folds=most, seed=seed)
        for fold in range(num_tested):
            known, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            yield Fold(f"fold_{fold}", known, test, "scaffold")
        if task == "classes":
            is_test = (rows["split_0"] == "test").to_numpy()
            yield Fold("split_0", everything[~is_test], everything[is_test], "scaffold")
    else:
        is_test = (rows["part" if "part" in rows else "split_0"] == "test").to_numpy()
        order = np.random.default_rng(seed).permutation(everything[~is_test])
        for size in (it for it in CURVE_SIZES if it <= len(order)):
            yield Fold(str(size), np.sort(order[:size]), everything[is_test])


def build_random_checkpoint(folder: Path) -> Checkpoint:
    """Save a model of the architecture of `rmat-small` with random weights."""
    torch.manual_seed(0)
    known = read_checkpoint("rmat-small")
    RMatModel(known.config).save_pretrained(folder)
    load_processor(known.name).save_pretrained(folder)
    return read_checkpoint(folder)


def fit(
    method: str, table: Table, fold: Fold, *, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return outputs of the test rows by method, and of the known rows, held out."""
    name, _, model = method.partition("@")
    labels, known = table.labels, fold.known
    if name in BASELINES:
        names: dict[str, Any] = {"problem_type": table.problem_type, "label_names": ["y"]}
        split, smiles = SplitIndices(known, known, fold.test), table.rows["smiles"].tolist()
        (outputs,), _ = fit_baseline(name, smiles, labels=labels, split=split, seed=seed, **names)
        outputs = outputs[:, -1] if outputs.ndim > 1 else outputs
        return {method: outputs[fold.test]}, {}
    with tempfile.TemporaryDirectory() as folder:
        if name in NETWORKS:
            return fit_networks(method, table, fold, Path(folder), seed=seed)
        if model == "random":
            checkpoint = build_random_checkpoint(Path(folder))
        else:
            checkpoint = read_checkpoint(model or "rmat-small")
        kinds = name.split("+") if "+" in name else DEFAULTS.kernel_features
        dataset, _ = table.featurize(kinds, with_forest=name == "stack")
        place = {row: idx for idx, row in enumerate(dataset["row"])}
        chosen = dataset.select([place[row] for row in known])
        columns = {"canonical_smiles": table.rows["smiles"].iloc[known].tolist()}
        fitted, held_out, _ = (fit_stack_with_held_out if name == "stack" else fit_with_held_out)(
            checkpoint,
            chosen,
            label_columns=["y"],
            kernel_features=kinds,
            problem_type=table.problem_type,
            label_units=(),
            seed=seed,
            folds=split_into_folds(columns, fold.family, most_folds=5, seed=seed),
        )
    test = dataset.select([place[row] for row in fold.test])
    outputs = predict_members(fitted, pack_dataset(test), has_members=name == "stack")
    found = {f"{method}{member}": it for member, it in outputs.items()}
    return found, {method: held_out[:, 0]}


@torch.no_grad()
def predict_members(model: Any, packed: list[bytes], *, has_members: bool) -> dict[str, np.ndarray]:
    """Return the outputs of a model, and of a stack those of its members."""
    found: dict[str, list[np.ndarray]] = {}
    batches = group_by_length(count_nodes(packed), batch_size=64)
    for batch in batches:
        arrays = expand_features([packed[row] for row in batch])
        inputs = {name: torch.from_numpy(it) for name, it in arrays.items()}
        outputs = {"": model(**inputs).logits[:, 0]}
        if has_members:
            names = ("node_features", "bond_types", "topological_distances")
            pairs = tuple(inputs[it] for it in (*names, "interatomic_distances"))
            read = ("attention_mask", "molecule_descriptors", "fingerprint_counts")
            members, _ = model.predict_members(pairs, *(inputs[it] for it in read))
            for member, mean in zip(STACK_MEMBERS, members, strict=False):
                name = f"/{member}"
                outputs[name] = mean[:, 0]
                if model.config.label_std is not None:
                    scaling = model.config.label_std[0], model.config.label_mean[0]
                    outputs[name] = mean[:, 0] * scaling[0] + scaling[1]
        for name, values in outputs.items():
            found.setdefault(name, []).append(values.double().numpy())
    place = np.argsort(np.concatenate(batches))
    return {name: np.concatenate(values)[place] for name, values in found.items()}


def fit_networks(
    method: str, table: Table, fold: Fold, folder: Path, *, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return what a run of `rmat finetune` says of the test rows, and of the known, held out."""
    chosen = np.concatenate([fold.known, fold.test])
    rows = table.rows.iloc[chosen][["smiles", "y"]].assign(part="test")
    is_valid = np.random.default_rng(seed).permutation(len(fold.known)) < 0.1 * len(fold.known)
    rows.iloc[: len(fold.known), -1] = np.where(is_valid, "valid", "train")
    path = folder / "table.csv"
    rows.to_csv(path, index=False)
    result = finetune(
        str(path),
        label_columns=["y"],
        problem_type=table.problem_type,
        split=fold.family,
        split_column="part",
        conflict_tolerance=1e9,
        output_dir=folder / "run",
        num_workers=0,
        seed=seed,
        **NETWORKS[method],
    )
    sys.stderr.write(f"{result.head}\n")
    found = pd.read_csv(result.output_dir / "predictions.csv").set_index("row").sort_index()
    if not np.array_equal(found["split"] == "test", rows["part"] == "test"):
        raise ValueError("The run has tested other rows than those of the fold.")
    known, test = np.split(found["prediction_y"].to_numpy(), [len(fold.known)])
    return {method: test}, {} if method == "finetuned" else {method: known}


def score(outputs: np.ndarray, table: Table, rows: np.ndarray) -> dict[str, float]:
    labels = table.labels[rows]
    if table.problem_type == CLASSES:
        return {"roc_auc": float(roc_auc_score(labels, outputs))}
    errors = (outputs - labels) ** 2
    found = {"rmse": float(np.sqrt(errors.mean()))}
    if "cliff_mol" in table.rows:
        is_cliff = table.rows["cliff_mol"].to_numpy()[rows] == 1
        found["cliff"] = float(np.sqrt(errors[is_cliff].mean()))
    return found


def list_tables(task: str, data: Path, chosen: list[str]) -> Iterator[Table]:
    names = {"activity": SETS, "splits": ("freesolv", "esol"), "curve": CURVE_SETS}
    names |= {"classes": ("estrogen-beta", "bbbp"), "large": LARGE_SETS}
    for name in chosen or names[task]:
        kind = "activity" if name.startswith("CHEMBL") else "mat_benchmark"
        path = data / "assays" / name if task == "large" else data / kind / f"{name}.csv"
        yield Table(path, CLASSES if task in ("classes", "large") else "regression")


def main() -> None:
    task, data, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    methods, _, others = " ".join(sys.argv[4:]).partition(" -- ")
    seeds, _, sets = others.partition(" -- ")
    results: dict[str, dict[str, float]] = json.loads(out.read_text()) if out.is_file() else {}
    for table in list_tables(task, data, sets.split()):
        # labels of one molecule that contradict each other are nobody's
        usable = table.featurize(DEFAULTS.kernel_features, with_forest=True)[0]["row"][:]
        for seed in map(int, seeds.split() or ["0"]):
            for fold in list_folds(task, table, seed):
                fold.known = fold.known[np.isin(fold.known, usable)]
                fold.test = fold.test[np.isin(fold.test, usable)]
                for method in methods.split():
                    key = f"{table.path.stem} {fold.name} {seed}"
                    if f"{key} {method}" in results:
                        continue
                    start = time.process_time()
                    found, held_out = fit(method, table, fold, seed=seed)
                    seconds = {"core_seconds": time.process_time() - start}
                    for name, outputs in found.items():
                        results[f"{key} {name}"] = score(outputs, table, fold.test) | seconds
                    for name, outputs in held_out.items():
                        known = score(outputs, table, fold.known)
                        results[f"{key} {name}"] |= {f"folds {it}": v for it, v in known.items()}
                    out.write_text(json.dumps(results, indent=1))
                    sys.stderr.write(f"{key} {method} {results[f'{key} {method}']}\n")
    write_summary(results, task=task)


def write_summary(results: dict[str, dict[str, float]], *, task: str) -> None:
    """Print means over splits and seeds, by set, and over the sets."""
    names = ("set", "split", "seed", "method")
    frame = pd.DataFrame(
        [{**dict(zip(names, key.split(), strict=True)), **it} for key, it in results.items()]
    )
    is_part = frame["split"].str.isdigit() | ((frame["split"] == "split_0") & (task == "classes"))
    frame["part"] = frame["split"].where(is_part, "")
    numbers = [name for name in frame if name not in {*names, "part"}]
    by_set = frame.groupby(["part", "method", "set"])[numbers].mean()
    rows = [["part", "method", "set", *numbers]]
    for key, values in by_set.iterrows():
        rows.append([*map(str, key), *(f"{it:.3f}" for it in values)])
    for key, values in by_set.groupby(["part", "method"]).mean().iterrows():
        rows.append([*map(str, key), "mean", *(f"{it:.3f}" for it in values)])
    write_rows(rows)


if __name__ == "__main__":
    main()
