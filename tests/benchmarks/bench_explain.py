"""Explanations against what is known: exact contributions, relations that decide, sums, cost.

    python tests/benchmarks/bench_explain.py DATA OUTPUT.md [--models FOLDER ...] [--bxaic FOLDER]

DATA is the folder with `mat_benchmark`. The models are finetuned on labels called `NumHDonors`,
`TPSA` and `MolLogP`, whose exact contributions of atoms RDKit knows; `rmat-small` has them in the
head of its pretraining. B-XAIC (arXiv 2505.22252): a folder with `data.csv` and `explanations.sdf`
of huggingface.co/datasets/mproszewska/B-XAIC, and `--models` finetuned on its tasks.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rdkit import Chem, RDLogger
from rdkit.Chem import Lipinski, rdMolDescriptors
from sklearn.metrics import roc_auc_score

from rmat_hf import (
    RMatForPreTraining,
    RMatForSequenceClassification,
    RMatProcessor,
    checkpoint_path,
    explain,
    predict,
)
from rmat_hf.data.stored_features import pack_features
from rmat_hf.inference.attribution import (
    METHODS,
    RELATION_INPUTS,
    Edit,
    Explainer,
    FeaturizedMol,
    build_variants,
)
from rmat_hf.loading import load_predictor
from rmat_hf.model.configuration_rmat import NO_BOND_TYPE, RMatConfig
from rmat_hf.model.features_rmat import parse_canonical

NUM_TRUTH, NUM_SUMS, NUM_TIMED = 40, 500, 24
BATCH_SIZE, NUM_TRAIN, NUM_TESTED = 32, 640, 60
# of training, on rmat-small; its weights know that atoms and distances tell the bonds and make
# little of these, so the label of bonds has a small model from random weights
STEPS = {"distance": 560, "bond": 5000, "neighborhood": 560}
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SIZES = (10, 25, 50)
NUM_STEPS = 16
Inputs = dict[str, np.ndarray]


def list_molecules(path: Path, *, number: int, atoms: range, seed: int = 0) -> list[str]:
    """Return random molecules of a table, of some sizes, each one fragment."""
    found = [
        smiles
        for smiles in pd.read_csv(path).smiles
        if (mol := Chem.MolFromSmiles(smiles)) and mol.GetNumAtoms() in atoms and "." not in smiles
    ]
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[row] for row in order[:number]]


def featurize(smiles: Sequence[str], processor: RMatProcessor) -> list[FeaturizedMol]:
    """Return molecules in the order of their features."""
    parsed = [parse_canonical(it, **processor.parsing_options) for it in smiles]
    names = (processor.fingerprints or (), processor.molecule_descriptors or ())
    return [
        FeaturizedMol(it.mol, pack_features(processor.featurize_compactly(it)), *names)
        for it in parsed
    ]


# Exact contributions of atoms


def count_donors(mol: Chem.Mol) -> np.ndarray:
    """Return 1 for an atom that is a donor of hydrogen bonds."""
    values = np.zeros(mol.GetNumAtoms())
    values[[atom for (atom,) in mol.GetSubstructMatches(Lipinski.HDonorSmarts)]] = 1
    return values


def compute_logp(mol: Chem.Mol) -> np.ndarray:
    """Return Crippen's contributions, of an atom with its hydrogens."""
    whole = Chem.AddHs(mol)
    values = np.array(rdMolDescriptors._CalcCrippenContribs(whole))[:, 0]
    for atom in range(mol.GetNumAtoms(), whole.GetNumAtoms()):
        values[whole.GetAtomWithIdx(atom).GetNeighbors()[0].GetIdx()] += values[atom]
    return values[: mol.GetNumAtoms()]


EXACT: dict[str, Callable[[Chem.Mol], np.ndarray]] = {
    "NumHDonors": count_donors,
    "TPSA": lambda mol: np.array(rdMolDescriptors._CalcTPSAContribs(mol)),
    "MolLogP": compute_logp,
}


def compute_gradients(
    explainer: Explainer, molecules: Sequence[FeaturizedMol], *, num_steps: int
) -> list[np.ndarray]:
    """Return gradient times node features, or with several steps their integral from zero.

    Of several steps: integrated gradients (arXiv 1703.01365), midpoints.
    """
    shares = (np.arange(num_steps) + 0.5) / num_steps if num_steps > 1 else np.ones(1)
    contributions = []
    for molecule in molecules:
        inputs = build_variants([(molecule, None)] * num_steps)
        features = torch.from_numpy(inputs["node_features"]).float()
        points = features * features.new_tensor(shares)[:, None, None]
        tensors = {name: torch.from_numpy(it) for name, it in inputs.items()}
        tensors["node_features"] = points.requires_grad_()
        score = explainer.read(explainer.model(**tensors, return_dict=True))[:, 0].sum()
        (gradients,) = torch.autograd.grad(score, points)
        values = (features * gradients).sum(-1).mean(0)[1:]
        contributions.append(values.double().numpy()[:, None])
    return contributions


def draw_numbers(explainer: Explainer, molecules: Sequence[FeaturizedMol]) -> list[np.ndarray]:
    """Return random numbers, the same for the same molecule: what any method has to beat."""
    return [
        np.random.default_rng(list(it.packed)).standard_normal((it.num_atoms, 1))
        for it in molecules
    ]


OTHERS: dict[str, Any] = {
    "gradient": partial(compute_gradients, num_steps=1),
    "integrated_gradients": partial(compute_gradients, num_steps=NUM_STEPS),
    "random": draw_numbers,
}


def measure_truth(
    model: Any, molecules: Sequence[FeaturizedMol], *, read: Callable[..., torch.Tensor]
) -> Iterator[tuple[str, str, float, float]]:
    """Yield label, method, mean correlation over molecules, and mean absolute error.

    `read` takes an output and the names of labels; methods without gradients do all at once.
    """
    for method, run in {**METHODS, **OTHERS}.items():
        for names in [[*EXACT]] if method in METHODS else [[name] for name in EXACT]:
            found = run(Explainer(model, partial(read, names=names)), molecules)
            for column, name in enumerate(names):
                values = [it[:, column] for it in found]
                yield name, method, *compare(values, [EXACT[name](it.mol) for it in molecules])


def compare(found: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the mean correlation of molecules whose atoms differ, and the mean absolute error."""
    pairs = [(a, b) for a, b in zip(found, exact, strict=True) if b.std() > 0]
    correlations = [np.corrcoef(a, b)[0, 1] if a.std() else 0.0 for a, b in pairs]
    errors = np.abs(np.concatenate(found) - np.concatenate(exact))
    return float(np.mean(correlations)), float(errors.mean())


def build_truth_table(models: Sequence[str], smiles: Sequence[str]) -> Iterator[str]:
    """Yield the table of exact contributions."""
    yield "| model | label | method | correlation | mean error, units |"
    yield "|---|---|---|---|---|"
    path = checkpoint_path("rmat-small")
    pretrained = RMatForPreTraining.from_pretrained(path).eval()
    targets = json.loads((path / "pretraining_targets.json").read_text())
    columns = {name: idx for idx, name in enumerate(targets["descriptor_quantiles"])}
    molecules = featurize(smiles, RMatProcessor.from_pretrained(path))
    read = partial(read_columns, output_name="descriptor_logits", columns=columns)
    for name, method, correlation, _ in measure_truth(pretrained, molecules, read=read):
        # the head predicts shares of a corpus, not the units
        yield f"| rmat-small | {name} | {method} | {correlation:.3f} | |"
    for model in models:
        predictor, processor = load_predictor(model, device="cpu")
        columns = {name: idx for idx, name in enumerate(predictor.config.output_names)}
        molecules = featurize(smiles, processor)
        read = partial(read_columns, output_name="logits", columns=columns)
        for name, method, *numbers in measure_truth(predictor.eval(), molecules, read=read):
            cells = "{:.3f} | {:.3f}".format(*numbers)
            yield f"| {Path(model).name} | {name} | {method} | {cells} |"


def read_columns(
    output: Any, *, output_name: str, columns: dict[str, int], names: Sequence[str]
) -> torch.Tensor:
    """Return what a model says of some labels."""
    return output[output_name][:, [columns[name] for name in names]].double()


# Labels that one relation decides: those of all three are drawn at random, independent of each
# other and of the molecule, so that nothing else tells the label.


def redraw(inputs: Inputs, rng: np.random.Generator, *, relations: Sequence[str]) -> Inputs:
    """Replace relations in the inputs, in place; return the label of each, of every molecule."""
    labels = {name: np.zeros(len(inputs["node_features"])) for name in relations}
    for row, num_nodes in enumerate(inputs["attention_mask"].sum(axis=1).tolist()):
        atoms = slice(1, num_nodes)
        for name in relations:
            pairs = inputs[RELATION_INPUTS[name][0]][row, atoms, atoms]
            pairs[:], labels[name][row] = DRAWS[name](pairs, rng)
    return labels


def draw_distances(pairs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Draw points in a ball, small or so large that some see nothing; label: how close they are."""
    places = rng.standard_normal((len(pairs), 3))
    places *= rng.random((len(pairs), 1)) ** (1 / 3) / np.linalg.norm(places, axis=1, keepdims=True)
    places *= 2 * 10 ** rng.random()
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    return distances, float(np.exp(-((distances[np.triu_indices(len(pairs), 1)] / 4) ** 2)).mean())


def draw_bonds(pairs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Draw the type of every bond; label: the share of double bonds."""
    is_bond = np.triu(pairs != NO_BOND_TYPE, 1)
    # most bonds of a molecule have the same order, so that its share varies
    orders = rng.choice(4, is_bond.sum(), p=rng.dirichlet([0.3] * 4))
    drawn = np.zeros_like(pairs)
    drawn[is_bond] = 1 + 8 * orders
    return drawn + drawn.T, float((orders == 2).mean())


def draw_neighborhoods(pairs: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Draw the number of bonds between every two atoms; label: the share of those with two."""
    places, share = np.triu_indices(len(pairs), 1), rng.random()
    orders = rng.choice([1, 3, 4], len(places[0]), p=rng.dirichlet([1, 1, 1]))
    orders = np.where(rng.random(len(places[0])) < share, 2, orders)
    drawn = np.zeros_like(pairs)
    drawn[places] = orders
    return drawn + drawn.T, float((orders == 2).mean())


DRAWS: dict[str, Any] = {
    "distance": draw_distances,
    "bond": draw_bonds,
    "neighborhood": draw_neighborhoods,
}


def train_on_relation(
    molecules: Sequence[FeaturizedMol], name: str
) -> RMatForSequenceClassification:
    """Train a model on a label; at first the other relations are those of the molecules."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    is_new, number = name == "bond", STEPS[name]
    if is_new:
        model = RMatForSequenceClassification(RMatConfig(**SMALL, **fields))
    else:
        path = checkpoint_path("rmat-small")
        model = RMatForSequenceClassification.from_pretrained(path, **fields)
    optimizer, rate = torch.optim.AdamW(model.train().parameters()), 2e-3 if is_new else 1e-3
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=number)
    rng = np.random.default_rng(1)
    for step in range(number):
        chosen = rng.choice(len(molecules), BATCH_SIZE, replace=False)
        inputs = build_variants([(molecules[row], None) for row in chosen])
        relations = [name] if step < (0.3 if is_new else 0.4) * number else [*DRAWS]
        labels = (redraw(inputs, rng, relations=relations)[name] - 0.4) / 0.25
        tensors = {key: torch.from_numpy(it) for key, it in inputs.items()}
        errors = model(**tensors).logits[:, 0] - torch.from_numpy(labels).float()
        optimizer.zero_grad()
        (errors**2).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def measure_shares(
    model: RMatForSequenceClassification, molecules: Sequence[FeaturizedMol], name: str
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the correlation with the label, and each relation's share of the effects.

    They are of all molecules together: of all of a relation, and the sum of those of the atoms.
    """
    rng, totals, by_atom, pairs = np.random.default_rng(2), [], [], []
    for molecule in molecules:
        whole = build_variants([(molecule, None)])
        label = redraw(whole, rng, relations=[*DRAWS])[name][0]
        atoms = molecule.atoms
        edits = [Edit(it, atoms, atoms) for it in DRAWS]
        edits += [Edit(it, (atom,), atoms) for it in DRAWS for atom in atoms]
        inputs = {key: np.repeat(it, len(edits) + 1, axis=0) for key, it in whole.items()}
        for row, edit in enumerate(edits, start=1):
            edit.apply({key: it[row] for key, it in inputs.items()})
        with torch.inference_mode():
            tensors = {key: torch.from_numpy(it) for key, it in inputs.items()}
            scores = model(**tensors).logits[:, 0].double().numpy()
        falls = np.abs(scores[0] - scores[1:])
        sums = falls[len(DRAWS) :].reshape(len(DRAWS), -1).sum(axis=1)
        totals.append(falls[: len(DRAWS)])
        by_atom.append(sums)
        pairs.append((label, scores[0]))
    shares = [np.sum(it, axis=0) / np.sum(it) for it in (totals, by_atom)]
    return float(np.corrcoef(np.array(pairs).T)[0, 1]), *shares


def build_relations_table(smiles: Sequence[str], processor: RMatProcessor) -> Iterator[str]:
    """Yield the table of labels that one relation decides."""
    molecules = featurize(smiles, processor)
    yield f"| label | correlation, held out | what | {' | '.join(DRAWS)} |"
    yield f"|---|---|---|{'---|' * len(DRAWS)}"
    for name in DRAWS:
        model = train_on_relation(molecules[:NUM_TRAIN], name)
        correlation, *shares = measure_shares(model, molecules[NUM_TRAIN:], name)
        for what, values in zip(("all of a relation", "by atom"), shares, strict=True):
            cells = " | ".join(f"{it:.2f}" for it in values)
            yield f"| {name} only | {correlation:.3f} | {what} | {cells} |"


# Sums, symmetry, order


def build_sums_table(model: str, smiles: Sequence[str]) -> Iterator[str]:
    """Yield how well contributions add up, whether equal atoms are equal, and faithfulness."""
    predictor, processor = load_predictor(model, device="cpu")
    yield "| method | share of the rest: median | 90 % | faithfulness: median | 10 % |"
    yield "|---|---|---|---|---|"
    difference = 0.0
    for method in ("environments", "drop"):
        found = explain(predictor, smiles, by=(), method=method, processor=processor)
        rows = [it for it in found.rows if it is not None]
        rests = [abs(it.residual / (it.prediction - it.baseline)) for it in rows]
        faithful = [it.faithfulness for it in rows if not np.isnan(it.faithfulness)]
        cells = (*np.quantile(rests, [0.5, 0.9]), *np.quantile(faithful, [0.5, 0.1]))
        yield f"| {method} | {' | '.join(f'{it:.2f}' for it in cells)} |"
        if method == "environments":
            difference = max(map(measure_symmetry, rows))
            order = max(measure_order(predictor, processor, rows[:50]))
    yield f"\nLargest difference of equal atoms: {difference:.1e}; of another order of atoms: "
    yield f"{order:.1e}, in units of the label, {len(smiles)} and 50 molecules."


def measure_symmetry(row: Any) -> float:
    """Return the largest difference between atoms that are the same in the bond graph."""
    kinds = np.array(Chem.CanonicalRankAtoms(row.mol, breakTies=False, includeChirality=True))
    return max(float(np.ptp(row.atoms.values[kinds == kind])) for kind in np.unique(kinds))


def measure_order(model: Any, processor: RMatProcessor, rows: Sequence[Any]) -> Iterator[float]:
    """Yield the largest difference between contributions of a molecule and of it renumbered."""
    rng, smiles, orders = np.random.default_rng(0), [], []
    for row in rows:
        order = rng.permutation(row.mol.GetNumAtoms())
        mol = Chem.RenumberAtoms(row.mol, order.tolist())
        smiles.append(Chem.MolToSmiles(mol, canonical=False))
        properties = mol.GetPropsAsDict(includePrivate=True, includeComputed=True)
        orders.append(order[list(properties["_smilesAtomOutputOrder"])])
    found = explain(model, smiles, by=(), processor=processor)
    for row, other, order in zip(rows, found.rows, orders, strict=True):
        yield float(np.abs(other.atoms.values - row.atoms.values[order]).max())


# Cost


def build_cost_table(model: str, path: Path) -> Iterator[str]:
    """Yield molecules per second of processor time, in turns with `predict`."""
    predictor, processor = load_predictor(model, device="cpu")
    yield "| atoms | predict | drop | environments | with relations and fragments | ratios |"
    yield "|---|---|---|---|---|---|"
    for size in SIZES:
        smiles = list_molecules(path, number=NUM_TIMED, atoms=range(size - 2, size + 3))
        run: Any = partial(explain, predictor, smiles, processor=processor)
        least = measure_seconds(
            {
                "predict": partial(predict, predictor, smiles, processor=processor),
                "drop": partial(run, by=(), method="drop"),
                "environments": partial(run, by=()),
                "all": run,
            }
        )
        speeds = " | ".join(f"{len(smiles) / it:.1f}" for it in least.values())
        ratios = ", ".join(f"{it / least['predict']:.0f}" for it in [*least.values()][1:])
        yield f"| {size} | {speeds} | {ratios} |"


def measure_seconds(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the least processor time of each of two runs, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(2):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: min(it) for name, it in seconds.items()}


# B-XAIC


def build_bxaic_table(models: Sequence[str], folder: Path) -> Iterator[str]:
    """Yield the mean ROC AUC of contributions against the atoms that are the reason.

    A model's folder is named after its task; the molecules are those of the first test split. Where
    none of the atoms, or all, are the reason, none is to stand out: the share without an outlier,
    further from the quartiles than 1.5 times their distance. Files and protocol are those of
    `dataset.py` and `evaluate_explanations.py` of github.com/mproszewska/B-XAIC, commit 5f0359b.
    """
    table = pd.read_csv(folder / "data.csv")
    mols = list(Chem.SDMolSupplier(str(folder / "explanations.sdf")))
    is_test = (table.split_0 == "test").to_numpy()
    properties = {"PAINS": "pains", "rings-count": "rings", "rings-max": "largest_rings"}
    yield "| task | method | ROC AUC of atoms | molecules | no reason: no outliers | molecules |"
    yield "|---|---|---|---|---|---|"
    for model in models:
        task = Path(model).name
        chosen = [mol for mol, inside in zip(mols, is_test, strict=True) if inside]
        reasons = [mol.GetProp(properties.get(task, task)) for mol in chosen]
        for method in METHODS:
            found = explain(model, chosen, by=(), method=method)
            areas, calm = [], []
            for row, text in zip(found.rows, reasons, strict=True):
                if row is None:
                    continue
                is_reason = np.zeros(len(row.atoms.values), dtype=bool)
                is_reason[[int(atom) for atom in text.split(",") if atom]] = True
                if is_reason.any() and not is_reason.all():
                    areas.append(roc_auc_score(is_reason, row.atoms.values))
                else:
                    calm.append(has_no_outlier(row.atoms.values))
            cells = f"{np.mean(areas):.3f} | {len(areas)} | {np.mean(calm or [np.nan]):.3f}"
            yield f"| {task} | {method} | {cells} | {len(calm)} |"


def has_no_outlier(values: np.ndarray) -> bool:
    """Return whether all numbers are near the quartiles."""
    low, high = np.quantile(values, [0.25, 0.75])
    reach = 1.5 * (high - low)
    return bool(((values >= low - reach) & (values <= high + reach)).all())


def main() -> None:
    """Measure and write the tables, each as soon as it is there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--bxaic", type=Path)
    parser.add_argument("--parts", nargs="*", default=["truth", "relations", "sums", "cost"])
    options = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    tables = options.data / "mat_benchmark"
    processor = RMatProcessor.from_pretrained(checkpoint_path("rmat-small"))
    truth = list_molecules(tables / "bbbp.csv", number=NUM_TRUTH, atoms=range(5, 41))
    related = list_molecules(tables / "bbbp.csv", number=NUM_TRAIN + NUM_TESTED, atoms=range(8, 23))
    sums = list_molecules(tables / "esol.csv", number=NUM_SUMS, atoms=range(2, 60))
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "truth": lambda: build_truth_table(options.models, truth),
        "relations": lambda: build_relations_table(related, processor),
        "sums": lambda: build_sums_table(options.models[0], sums),
        "cost": lambda: build_cost_table(options.models[0], tables / "bbbp.csv"),
        "bxaic": lambda: build_bxaic_table(options.models, options.bxaic),
    }
    with open(options.output, "a", encoding="utf-8") as file:
        for name in [*options.parts, *(["bxaic"] if options.bxaic else [])]:
            print(f"\n## {name}\n", file=file)
            for line in parts[name]():
                print(line, file=file, flush=True)


if __name__ == "__main__":
    main()
