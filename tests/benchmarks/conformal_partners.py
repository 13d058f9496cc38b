"""The intervals and Venn-ABERS probabilities of rmat_hf beside those of crepes and mapie.

    python tests/benchmarks/conformal_partners.py write DATA ARRAYS.npz
    python tests/benchmarks/conformal_partners.py compare ARRAYS.npz

The first writes errors, scales and intervals of a stack on FreeSolv, and gaps of a score. The
second runs where crepes and mapie are installed, without rmat_hf, and prints the differences.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

COVERAGES = (0.8, 0.9, 0.95)


def write(data: Path, out: Path) -> None:
    import bench_trust
    import torch

    from rmat_hf.training.trust import _fit_fingerprints, compute_venn_abers

    path = data / "mat_benchmark" / "freesolv.csv"
    options: dict[str, Any] = {"problem_type": "regression"}
    found = bench_trust.fit(path, "y", split="random", seed=0, **options)
    judged = bench_trust.judge(found, path, "y", **options)
    rows, packed, _ = bench_trust.load_set(path, "y", "regression")
    molecules = [packed[row] for row in found["known"]]
    folds = (found["folds"], found["folds"])
    _, novelty = _fit_fingerprints(judged["model"], (molecules, molecules), folds=folds)
    head = judged["model"].trust_head
    tensors = (torch.from_numpy(it) for it in (novelty, found["variances"]))
    arrays = {
        "labels": np.ravel(rows["labels"][:])[found["known"]],
        "held_out": found["outputs"][:, 0],
        "scales": head.compute_scale(*tensors).numpy()[:, 0],
        "values": judged["values"],
        "new_scales": (judged["upper"][0.9] - judged["values"]) / head.find_quantiles(0.9)[0],
        **{f"upper {it}": judged["upper"][it] for it in COVERAGES},
    }
    generator = np.random.default_rng(0)
    scores, new = np.sort(generator.normal(size=500)), generator.normal(size=200)
    classes = (generator.uniform(size=500) < 1 / (1 + np.exp(-scores)) ** 1.5).astype(float)
    places = np.searchsorted(scores, new, side="right")
    low, high = (it[places] for it in compute_venn_abers(classes))
    arrays |= {"scores": scores, "classes": classes, "new": new, "low": low, "high": high}
    np.savez(out, **arrays)


def compare(path: Path) -> None:
    from crepes import ConformalRegressor
    from mapie._venn_abers import VennAbers
    from mapie.regression import SplitConformalRegressor
    from sklearn.base import BaseEstimator, RegressorMixin

    class Given(RegressorMixin, BaseEstimator):
        """Predicts what it is given."""

        def fit(self, rows: np.ndarray, labels: np.ndarray) -> "Given":
            return self

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def predict(self, rows: np.ndarray) -> np.ndarray:
            return np.asarray(rows)[:, 0]

    it = np.load(path)
    scales, new_scales = it["scales"], it["new_scales"]
    regressor = ConformalRegressor()
    regressor.fit(residuals=it["labels"] - it["held_out"], sigmas=scales)
    for coverage in COVERAGES:
        of_crepes = regressor.predict_int(it["values"], sigmas=new_scales, confidence=coverage)
        split = SplitConformalRegressor(
            Given(), confidence_level=coverage, conformity_score="absolute", prefit=True
        ).conformalize((it["held_out"] / scales)[:, None], it["labels"] / scales)
        _, scaled = split.predict_interval((it["values"] / new_scales)[:, None])
        uppers = {"crepes": of_crepes[:, 1], "mapie": scaled[:, 1].ravel() * new_scales}
        for name, upper in uppers.items():
            sys.stdout.write(
                f"{name} {coverage}: {np.abs(upper - it[f'upper {coverage}']).max():.1e}\n"
            )
    judge, (known, new) = VennAbers(), (1 / (1 + np.exp(-it[name])) for name in ("scores", "new"))
    judge.fit(np.c_[1 - known, known], it["classes"])
    _, pairs = judge.predict_proba(np.c_[1 - new, new])
    ours = np.stack((it["low"], it["high"]), axis=1)
    sys.stdout.write(f"Venn-ABERS of mapie: {np.abs(pairs - ours).max():.1e}\n")


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    {"write": write, "compare": compare}[command](*map(Path, paths))
