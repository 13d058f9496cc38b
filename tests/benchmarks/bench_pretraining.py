"""What each objective of pretraining is worth: short runs, and an SVM on their frozen vectors.

    python tests/benchmarks/bench_pretraining.py CORPUS DATA FOLDER [--steps 2000] [--arms A D]

CORPUS is what `draw_corpus.py` draws, featurized as its first lines say.
No test row is read: activity sets by five folds of train (RMSE), FreeSolv and ESOL on valid of six
splits (RMSE), BBBP and Estrogen-beta by three folds of train and valid without a common scaffold
(1 - ROC AUC). Settings of the SVM are chosen where they are scored, for all arms alike. What is in
FOLDER already is not computed again; an interrupted run continues.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from bench_embeddings import build_models
from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles
from sklearn.metrics import get_scorer
from sklearn.model_selection import GroupKFold, KFold

from rmat_hf import embed
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import POOLINGS, RMatAttentionPooling
from rmat_hf.output_folder import save_json
from rmat_hf.training.baselines import standardize_descriptors
from rmat_hf.training.pretraining import run_pretraining
from rmat_hf.training.pretraining_arguments import PretrainingArguments

SMALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_head_layers": 2,
}
COUNTS = "contexts,descriptors,counts"
ASSAYS = f"{COUNTS},assays"
# name → objective, and what else differs from the arm before it
ARMS: dict[str, dict[str, Any]] = {
    "A": {"objective": "contexts,descriptors", "descriptor_scale": "ranks"},
    "B": {"objective": "contexts,descriptors"},
    "C": {"objective": COUNTS},
    "D": {"objective": ASSAYS},
    "E": {"objective": f"{ASSAYS},atoms=0.3", "masked_distances": "hidden"},
    "F": {"objective": ASSAYS, "architecture": {"num_pooling_heads": 8}},
    "G": {"objective": ASSAYS, "architecture": {"pooling": "attention_and_sum"}},
}
SEEDS = {"A": (0, 1), "D": (0, 1)}
# Atoms of a large molecule: the sum has the scale of a mean.
SUM_SCALE = 32.0
# An arm is kept if it gains on two sets at least, and loses on none by more than this share.
MAX_LOSS = 0.02
CLASSES = ("bbbp", "estrogen-beta")


class SumPooling(RMatAttentionPooling):
    """The attentive readout, and beside it the sum over the atoms, which counts them."""

    def __init__(self, config: RMatConfig) -> None:
        super().__init__(config)
        self.output_size += config.hidden_size

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        total = (hidden_states * attention_mask.unsqueeze(-1)).sum(1) / SUM_SCALE
        return torch.cat((super().forward(hidden_states, attention_mask), total), dim=-1)


POOLINGS["attention_and_sum"] = SumPooling


def pretrain(name: str, seed: int, *, options: argparse.Namespace) -> Path:
    folder = options.folder / f"{name}-{seed}"
    if not folder.is_dir():
        fields = {"descriptor_scale": "standardized", **ARMS[name]}
        architecture = SMALL | fields.pop("architecture", {})
        run_pretraining(
            PretrainingArguments(
                corpus=str(options.corpus),
                output_dir=str(folder),
                model_config=json.dumps(architecture),
                learning_rate=2e-3,
                max_steps=options.steps,
                num_evaluations=4,
                seed=seed,
                resume=Path(f"{folder}.in_progress").is_dir(),
                **fields,
            )
        )
    return folder


def iterate_folds(name: str, table: pd.DataFrame) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Yield folds, rows to fit and rows to score, that share the settings of the SVM."""
    if name in CLASSES:
        scaffolds = table["smiles"].map(lambda text: MurckoScaffoldSmiles(smiles=text))
        yield list(GroupKFold(3).split(table, groups=scaffolds))
    elif "part" in table:
        yield list(KFold(5, shuffle=True, random_state=0).split(table))
    else:
        for split in (column for column in table if column.startswith("split_")):
            rows = (np.flatnonzero(table[split] == part) for part in ("train", "valid"))
            yield [tuple(rows)]


def read_set(path: Path) -> pd.DataFrame:
    """Return the rows that may be read; in split_1 and so on others of them are test."""
    table = pd.read_csv(path).rename(columns={"pact": "y"})
    if "part" in table or path.stem in CLASSES:
        part = table["part" if "part" in table else "split_0"]
        table = table[part != "test"].reset_index(drop=True)
    return table


def score(model: Path, path: Path) -> float:
    """Return the error on a set: RMSE, or 1 - ROC AUC."""
    table, is_class = read_set(path), path.stem in CLASSES
    vectors = embed(model, table["smiles"].tolist()).values.astype(np.float64)
    labels = table["y"].to_numpy(dtype=np.float64)
    measure = get_scorer("roc_auc" if is_class else "neg_root_mean_squared_error")
    errors = []
    for folds in iterate_folds(path.stem, table):
        trials: list[list[float]] = []
        for fit, held in folds:
            features = standardize_descriptors(vectors, train=fit)
            models = build_models("SVM", features=features[fit], is_classification=is_class)
            found = [
                measure(it.fit(features[fit], labels[fit]), features[held], labels[held])
                for it in models
            ]
            trials.append([1 - value if is_class else -value for value in found])
        errors.append(np.mean(trials, axis=0).min())
    return float(np.mean(errors))


def describe(scores: dict[str, dict[str, float]]) -> str:
    """Return a table of all runs, with what the rule says of each arm beside the first."""
    table = pd.DataFrame(scores).T
    table.index = table.index.str.rsplit("-", n=1, expand=True)
    means = table.groupby(level=0).mean()
    shares = means / means.iloc[0] - 1
    gains, worst = (shares < 0).sum(axis=1), shares.max(axis=1)
    lines = ["| arm | " + " | ".join([*means, "gains", "worst", "kept"]) + " |"]
    lines.append("|---" * (means.shape[1] + 4) + "|")
    for name, row in means.iterrows():
        is_kept = gains[name] >= 2 and worst[name] <= MAX_LOSS
        cells = [f"{value:.3f}" for value in row]
        cells += [str(gains[name]), f"{worst[name]:+.1%}", "yes" if is_kept else "no"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("corpus", "data", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--sets", nargs="+", help="Names of the files; by default all.")
    options = parser.parse_args()
    kinds = ("activity", "mat_benchmark")
    paths = sorted(path for kind in kinds for path in options.data.glob(f"{kind}/*.csv"))
    paths = [path for path in paths if not options.sets or path.stem in options.sets]
    options.folder.mkdir(parents=True, exist_ok=True)
    output = options.folder / "scores.json"
    scores = json.loads(output.read_text()) if output.is_file() else {}
    for name in options.arms:
        for seed in SEEDS.get(name, (0,)):
            found = scores.setdefault(f"{name}-{seed}", {})
            model = pretrain(name, seed, options=options)
            for path in paths:
                if path.stem not in found:
                    found[path.stem] = score(model, path)
                    save_json(output, scores)
    sys.stdout.write(describe(scores) + "\n")


if __name__ == "__main__":
    main()
