"""The committed measures hold: a walk is short, and a house is counted as it is."""

from pathlib import Path

import pytest
from house import measure_house
from versions import REPO_ROOT, save_tiny_predictor
from walks import walk_predict_call


@pytest.mark.slow
def test_one_smiles_walks_through_few_modules_and_is_parsed_once(tmp_path: Path) -> None:
    save_tiny_predictor(REPO_ROOT, tmp_path / "model")
    walk = walk_predict_call(tmp_path)
    found = walk.describe()
    assert "model/modeling_rmat.py" in found["which"]
    assert found["modules"] == len(found["which"]) <= 14
    assert (found["config.json read"], found["parses"]) == (0, 1)


def test_a_house_is_counted(tmp_path: Path) -> None:
    package = tmp_path / "rmat_hf"
    (package / "model").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (package / "__init__.py").write_text("VALUE = 1\n")
    (package / "model" / "a_rmat.py").write_text(
        "from rmat_hf.model import b_rmat\n\nraise ValueError\n"
    )
    (package / "model" / "b_rmat.py").write_text(
        'def run():\n    """One.\n\n    Two.\n    """\n    return 1\n'
    )
    (tmp_path / "tests" / "test_a.py").write_text("x = 1\n\n")
    found = measure_house(tmp_path)
    assert found["Python lines of rmat_hf"] == "10"
    assert found["Python files at its root"] == "1"
    assert found["files that travel with a checkpoint (model/)"] == "2"
    assert found["raise per 1,000 lines"] == "100.0"
    assert found["longest function, lines without docstring"] == "2"
    assert found["import cycles"] == "0"
    assert found["Python lines of tests"] == "2"
    (package / "model" / "b_rmat.py").write_text("from rmat_hf.model import a_rmat\n")
    assert measure_house(tmp_path)["import cycles"] == "1"
