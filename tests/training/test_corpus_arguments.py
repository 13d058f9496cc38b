from pathlib import Path
from typing import Any

import pytest

from rmat_hf.data.corpus import load_corpus
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import list_molecule_descriptor_names
from rmat_hf.output_folder import lock_output
from rmat_hf.training.corpus_arguments import (
    FeaturizationArguments,
    build_corpus_processor,
    run_featurization,
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "input.smi"
    path.write_text("CCO\nC1CC\nCCN\n")
    return path


def test_flags_decide_the_corpus(table: Path, tmp_path: Path) -> None:
    arguments = FeaturizationArguments(
        input=str(table),
        output_dir=str(tmp_path / "corpus"),
        molecule_descriptors="rdkit_2d",
        max_atoms=9,
        shard_size=2,
        max_rows=2,
    )
    report = run_featurization(arguments)
    assert (report.num_rows, report.num_molecules, report.num_shards) == (2, 1, 1)
    processor = load_corpus(tmp_path / "corpus", streaming=True).processor
    assert processor.geometry == "bounds"
    assert processor.max_atoms == 9
    assert processor.molecule_descriptors == list_molecule_descriptor_names()


def test_default_has_no_descriptors_and_drops_failures() -> None:
    processor = build_corpus_processor(FeaturizationArguments(input="a.csv", output_dir="b"))
    assert processor.molecule_descriptors is None
    assert processor.on_conformer_failure == "raise"


@pytest.mark.parametrize(
    "values",
    [
        {"geometry": "3d"},
        {"molecule_descriptors": "all"},
        {"on_conformer_failure": "skip"},
        {"shard_size": 0},
    ],
)
def test_a_value_that_cannot_be_is_an_error(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(values)).replace('_', '-')} "):
        FeaturizationArguments(input="a.csv", output_dir="b", **values)


def test_a_second_run_on_the_folder_is_refused(table: Path, tmp_path: Path) -> None:
    arguments = FeaturizationArguments(input=str(table), output_dir=str(tmp_path / "corpus"))
    with (
        lock_output(tmp_path / "corpus"),
        pytest.raises(UserError, match="Another run is writing"),
    ):
        run_featurization(arguments)
    assert not (tmp_path / "corpus").exists()
    assert run_featurization(arguments).num_rows == 3
