"""Draw the molecules on which `bench_pretraining.py` compares objectives.

    python tests/benchmarks/draw_corpus.py DATA molecules.csv
    rmat featurize --input molecules.csv --molecule-descriptors all_2d \
        --labels DATA/assays/assays.parquet --output-dir CORPUS

All of ToxCast, then 22,000 others with two labels at least, 5,000 without and 6,000 of MOSES.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd


def main() -> None:
    data, output = map(Path, sys.argv[1:])
    labels = pd.read_parquet(data / "assays/assays.parquet", columns=["smiles", "source"])
    molecules = labels.groupby("smiles").agg(count=("source", "size"), first=("source", "first"))
    is_tox = molecules["first"].str.contains("ox")
    others = molecules.index[(molecules["count"] >= 2) & ~is_tox]
    unlabeled = pd.read_parquet(data / "pretraining/diverse.parquet")["smiles"]
    unlabeled = unlabeled[~unlabeled.isin(set(molecules.index))]
    moses = pd.read_parquet(data / "pretraining/moses.parquet")["smiles"]
    generator = np.random.default_rng(0)
    drawn = list(molecules.index[is_tox])
    for pool, count in ((others, 22_000), (unlabeled, 5_000), (moses, 6_000)):
        drawn += list(generator.choice(pool, min(count, len(pool)), replace=False))
    table = pd.DataFrame({"smiles": drawn}).drop_duplicates().sample(frac=1, random_state=0)
    table.to_csv(output, index=False)


if __name__ == "__main__":
    main()
