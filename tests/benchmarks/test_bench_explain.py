"""The protocol of B-XAIC, on a small file of its format, finds what a model reads."""

from pathlib import Path

import pandas as pd
import pytest
from bench_explain import build_bxaic_table
from rdkit import Chem

from rmat_hf import finetune


@pytest.mark.slow
def test_bxaic_finds_the_atoms_that_are_the_reason(tiny_encoder: Path, tmp_path: Path) -> None:
    smiles = ["C" * size + end for size in range(2, 10) for end in ("F", "Cl", "Br", "O", "N", "")]
    parts = ["test" if row % 4 == 3 else "train" for row in range(len(smiles))]
    halogens, num_test = Chem.MolFromSmarts("[F,Cl,Br]"), parts.count("test")
    with Chem.SDWriter(str(tmp_path / "explanations.sdf")) as writer:
        for text in smiles:
            mol = Chem.MolFromSmiles(text)
            atoms = [str(atom) for (atom,) in mol.GetSubstructMatches(halogens)]
            mol.SetProp("X", ",".join(atoms))
            writer.write(mol)
    is_halide = [int(text[-1] in "Flr") for text in smiles]
    table = pd.DataFrame({"smiles": smiles, "X": is_halide, "split_0": parts})
    table.to_csv(tmp_path / "data.csv", index=False)
    options = {"head": "kernel", "kernel_features": ["ecfp4"], "split": "column", "num_workers": 0}
    model = finetune(
        table,
        label_columns=["X"],
        split_column="split_0",
        model=str(tiny_encoder),
        output_dir=tmp_path / "X",
        feature_cache="none",
        **options,
    ).output_dir
    _, _, *lines = build_bxaic_table([str(model)], tmp_path)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:2] for row in rows] == [["X", it] for it in ("environments", "drop", "mask")]
    num_halides = sum(it for it, part in zip(is_halide, parts, strict=True) if part == "test")
    for row in rows[:2]:
        assert float(row[2]) > 0.9
        assert (int(row[3]), int(row[5])) == (num_halides, num_test - num_halides)
        assert 0 <= float(row[4]) <= 1
