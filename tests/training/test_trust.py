"""What a finetuned model says of its own errors: intervals, classes and the domain."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from processes import predict_without_package
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from tiny import TINY_ARCHITECTURE
from tiny_finetuning import TABLE_SMILES, build_tiny_arguments
from transformers import AutoModelForSequenceClassification

from rmat_hf import predict
from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.errors import UserError
from rmat_hf.loading import load_predictor
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor, list_warnings
from rmat_hf.model.trust_rmat import RMatTrust
from rmat_hf.training.finetuning import run_finetuning
from rmat_hf.training.trust import (
    HeldOut,
    compute_novelty,
    compute_venn_abers,
    describe_trust,
    fit_error_scale,
    fit_trust,
)

CHAINS = ["C" * size + end for end in ("O", "N", "Cl") for size in range(1, 15)]
KERNEL: dict[str, Any] = {"model": "rmat-small", "head": "kernel"}


def finetune_chains(
    folder: Path, values: Callable[[int], float] = float, **options: Any
) -> tuple[Path, Any]:
    """Finetune on chains of carbon, whose label is a function of their length."""
    folder.mkdir(exist_ok=True)
    columns = {"smiles": CHAINS, "y": [values(len(it)) for it in CHAINS]}
    result = run_finetuning(build_tiny_arguments(folder, columns, num_workers=0, **options))
    return folder / "run", result


@pytest.fixture(scope="module")
def kernel_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return finetune_chains(tmp_path_factory.mktemp("kernel"), **KERNEL)


def test_intervals_grow_with_the_coverage_and_what_the_rows_cannot_carry_is_refused(
    kernel_run: tuple[Path, Any],
) -> None:
    folder, result = kernel_run
    assert set(result.metrics) == {"train", "valid", "test", "out_of_fold"}
    assert "5 folds" in result.summary
    narrow, wide = (predict(folder, TABLE_SMILES, coverage=it) for it in (0.5, 0.95))
    assert (narrow.lower > wide.lower).all()
    assert (narrow.upper < wide.upper).all()
    with pytest.raises(UserError, match=r"0\.97"):
        predict(folder, TABLE_SMILES, coverage=0.999)


def test_a_molecule_of_training_is_not_new_and_another_is_outside_of_the_domain(
    kernel_run: tuple[Path, Any],
) -> None:
    result = predict(kernel_run[0], [CHAINS[3], "O=S(=O)(c1ccccc1)N1CCOCC1", "C1CC"])
    columns = result.to_columns()
    assert columns["novelty"][0] == 0.0
    assert columns["nearest_train"][0] == 1.0
    assert columns["in_domain"] == [True, False, None]
    known, new, failed = columns["warning"]
    assert known is None
    assert "S" in new
    (long,) = predict(kernel_run[0], ["C" * 20]).warnings
    assert "heavy atoms" in long
    assert failed is None
    assert columns["lower_y"][2] is None


def test_without_trust_predictions_are_the_same_and_nothing_else(
    kernel_run: tuple[Path, Any],
) -> None:
    given, plain = (predict(kernel_run[0], TABLE_SMILES, trust=it) for it in (True, False))
    np.testing.assert_array_equal(given.values, plain.values)
    assert list(plain.to_columns()) == ["prediction_y", "spread_y", "error"]


@pytest.mark.slow
def test_centers_keep_no_fingerprint_and_know_what_is_new(tmp_path: Path) -> None:
    folder, _ = finetune_chains(tmp_path, **KERNEL, trust="centers")
    model, _ = load_predictor(folder)
    assert not [name for name in model.state_dict() if "fingerprints" in name]
    columns = predict(folder, [CHAINS[3], "O=S(=O)(c1ccccc1)N1CCOCC1"]).to_columns()
    assert "nearest_train" not in columns
    assert columns["novelty"][0] < columns["novelty"][1]
    assert columns["in_domain"][1] is False
    none, _ = finetune_chains(tmp_path / "none", **KERNEL, trust="none")
    assert "lower_y" not in predict(none, ["CCO"]).to_columns()


@pytest.mark.parametrize(
    "problem",
    [
        "multi_label_classification",
        pytest.param("single_label_classification", marks=pytest.mark.slow),
    ],
)
def test_classes_have_calibrated_probabilities_and_sets(tmp_path: Path, problem: str) -> None:
    folder, _ = finetune_chains(
        tmp_path, lambda size: float(size > 7), **KERNEL, problem_type=problem
    )
    result = predict(folder, CHAINS)
    columns = result.to_columns()
    long = np.array([len(it) > 7 for it in CHAINS])
    probabilities = np.array(columns["probability_y"])
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert probabilities[long].mean() > probabilities[~long].mean() + 0.5
    assert set(columns["set_y"]) <= {"0", "1", "0 or 1", "none"}
    held = [str(int(it)) in text for it, text in zip(long, columns["set_y"], strict=True)]
    assert np.mean(held) >= 0.8


@pytest.mark.slow
def test_one_network_rests_on_valid_and_members_with_folds_on_every_row(tmp_path: Path) -> None:
    _, single = finetune_chains(tmp_path / "single", num_train_epochs=1)
    assert "valid alone" in single.summary
    assert "out_of_fold" not in single.metrics
    options = {"num_train_epochs": 1, "num_members": 2, "member_folds": True}
    folder, folds = finetune_chains(tmp_path / "folds", **options)
    assert "2 folds" in folds.summary
    model, _ = load_predictor(folder)
    assert model.config.trust["num_rows"] == [38]
    assert "lower_y" in predict(folder, ["CCO"]).to_columns()


def test_of_scores_that_are_equal_each_class_is_as_possible_as_it_was_frequent() -> None:
    config = RMatConfig(
        **TINY_ARCHITECTURE,
        num_labels=1,
        problem_type="multi_label_classification",
        trust={"kind": "centers", "num_references": 1, "num_rows": [20], "threshold": 0.5},
    )
    head = RMatTrust(config, vector_size=2)
    head.is_positive[0, :10] = 1
    found = head({}, torch.zeros(1, 1), coverage=0.9, vectors=torch.zeros(1, 2))
    # each row that was held out had this score, whatever its class
    assert found["is_possible"].tolist() == [[1.0, 1.0]]


def test_the_error_scale_never_falls_with_novelty() -> None:
    generator = np.random.default_rng(0)
    novelty = generator.uniform(size=2000)
    knots, scales = fit_error_scale(np.abs(generator.normal(size=2000)) * (1 + novelty), novelty)
    assert (np.diff(knots) >= 0).all()
    assert (np.diff(scales) >= 0).all()
    np.testing.assert_allclose(scales[-1] / scales[0], 2, rtol=0.2)
    # too few rows for a second knot: the mean error
    _, scales = fit_error_scale(np.array([1.0, 3.0]), np.array([0.1, 0.9]))
    np.testing.assert_array_equal(scales, 2.0)


def test_venn_abers_is_an_isotonic_regression_with_the_new_row_in_it() -> None:
    from sklearn.isotonic import isotonic_regression

    generator = np.random.default_rng(0)
    labels = (generator.uniform(size=60) < np.linspace(0, 1, 60)).astype(float)
    found = compute_venn_abers(labels)
    for gap in range(61):
        for label in (0, 1):
            expected = isotonic_regression(np.insert(labels, gap, label))[gap]
            np.testing.assert_allclose(found[label][gap], expected, atol=1e-12)


def test_saved_trust_comes_back_bit_for_bit(kernel_run: tuple[Path, Any], tmp_path: Path) -> None:
    model, processor = load_predictor(kernel_run[0])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = load_predictor(tmp_path)
    for name, values in model.trust_head.state_dict().items():
        assert torch.equal(values, again.trust_head.state_dict()[name])
    first, second = (predict(it, TABLE_SMILES) for it in (kernel_run[0], tmp_path))
    np.testing.assert_array_equal(first.lower, second.lower)
    half = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.rmat.get_input_embeddings().weight.dtype == torch.bfloat16
    assert torch.equal(half.trust_head.scores, model.trust_head.scores)


@pytest.mark.slow
def test_without_this_package_the_pipeline_says_the_same(
    kernel_run: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, molecules = kernel_run[0], ["CCO", "O=S(=O)(c1ccccc1)N1CCOCC1"]
    visited = predict_without_package(folder, molecules, folder=tmp_path, coverage=0.8)
    columns = predict(folder, molecules, coverage=0.8).to_columns()
    for idx, result in enumerate(visited):
        (prediction,) = result["predictions"]
        names = ("lower", "upper", "spread")
        found = [result["novelty"], result["nearest_train"], *(prediction[it] for it in names)]
        expected = [columns[it][idx] for it in ("novelty", "nearest_train")]
        expected += [columns[f"{it}_y"][idx] for it in names]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert result["in_domain"] == columns["in_domain"][idx]
        assert result["warning"] == columns["warning"][idx]


def test_a_flat_or_broken_conformer_has_a_warning() -> None:
    processor = RMatProcessor(geometry="given")
    mol = Chem.AddHs(Chem.MolFromSmiles("CCOC(=O)C(C)N"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    positions = mol.GetConformer().GetPositions()
    close, flat = positions.copy(), positions * (1, 1, 0)
    close[1] = close[0] + (0.02, 0, 0)
    found = []
    for changed in (positions, close, flat):
        mol.GetConformer().SetPositions(changed)
        batch = processor(mol)
        found.append(list_warnings(batch.compact_features[0], {}))
    assert found[0] == []
    assert ["closer" in text for text in found[1]] == [True]
    assert ["flat" in text for text in found[2]] == [True]


@pytest.mark.parametrize(
    ("smiles", "part"),
    [
        ("[He]", "an element"),
        ("[Og]", "an element"),
        ("C[Si](C)(C)C", "an element"),
        ("N[Pt](N)(Cl)Cl", "an element"),
        ("[C].[C].[O]", "several fragments"),
        ("[Zn-15]C", "a charge"),
        ("C[N+15]", "a charge"),
        ("FS(F)(F)(F)(F)F", "five neighbors"),
        ("CC(=O)[O-].[Na+]", "several fragments"),
        ("O", "single heavy atom"),
    ],
)
def test_what_the_model_cannot_see_has_a_warning(smiles: str, part: str) -> None:
    features = RMatProcessor(geometry="bounds").featurize_compactly(smiles)
    assert any(part in text for text in list_warnings(features, {}))


def test_novelty_is_zero_for_a_known_molecule_and_undefined_for_none(
    kernel_run: tuple[Path, Any],
) -> None:
    """And it is the one that the model tells."""
    found = compute_novelty(["OCC", "FC(F)(F)Cl", "C1CC"], CHAINS)
    assert found[0] == 0.0
    assert found[1] > 0.5
    assert np.isnan(found[2])
    assert np.isnan(compute_novelty(["CCO"], [])).all()


def fit_folds(folds: np.ndarray, outputs: np.ndarray, labels: np.ndarray, problem: str) -> Any:
    """Return a tiny model with the trust of what was held out of it."""
    config = RMatConfig(**TINY_ARCHITECTURE, num_labels=1, problem_type=problem)
    model = RMatForSequenceClassification(config)
    molecules = featurize_molecules(
        ["C" * (2 + idx % 20) for idx in folds], RMatProcessor(geometry="2d")
    )
    rows = np.arange(len(folds))
    fit_trust(
        model,
        [it.features for it in molecules],
        kind="fingerprints",
        references=rows,
        held_out=HeldOut(rows, outputs[:, None], None, folds),
        labels=labels[:, None],
    )
    return model


def test_a_large_fold_counts_no_more_than_a_small_one() -> None:
    folds = np.repeat([0, 1, 2], [400, 30, 30])
    errors = np.r_[np.full(400, 0.1), np.full(60, 1.0)]
    model = fit_folds(folds, errors, np.zeros(460), "regression")
    # two of three folds have errors of 1, of the rows an eighth
    scale = float(model.trust_head.scale_knots[0].max())
    assert model.trust_head.find_quantiles(0.5)[0] * scale > 0.9
    assert model.config.trust["num_rows"] == [460]


def test_a_fold_of_a_row_does_not_decide() -> None:
    folds, errors = np.r_[np.repeat([0, 1], 200), 2], np.r_[np.full(400, 0.1), 5.0]
    model = fit_folds(folds, errors, np.zeros(401), "regression")
    scale = float(model.trust_head.scale_knots[0].max())
    assert model.trust_head.find_quantiles(0.9)[0] * scale < 0.5
    mean, worst = model.config.trust["fold_coverage"][0]
    # the row itself is outside of what the others say, and is no worst fold
    assert 0.95 < mean < 1
    assert worst == 1.0


@pytest.mark.parametrize(("num_rows", "is_short"), [(18, False), (120, True)])
def test_few_rows_give_no_warning_of_intervals(num_rows: int, is_short: bool) -> None:
    folds, errors = np.repeat([0, 1, 2], num_rows // 3), np.full(num_rows, 0.1)
    # a half of the last fold
    errors[-num_rows // 6 :] = 5.0
    model = fit_folds(folds, errors, np.zeros(num_rows), "regression")
    text = describe_trust(model.config)[-1]
    assert "83%" in text
    assert ("do not rely on them" in text) == is_short
    assert ("in the worst fold" in text) == (num_rows == 120)


def test_the_card_says_where_sets_do_not_hold_for_a_fold() -> None:
    folds, labels = np.repeat([0, 1, 2], 60), np.tile([0.0, 1.0], 90)
    outputs = 4 * labels - 2
    # of the last fold the zeros look like ones
    outputs[(folds == 2) & (labels == 0)] = 3.0
    model = fit_folds(folds, outputs, labels, "multi_label_classification")
    *_, text = describe_trust(model.config)
    assert "67% of class 0, 100% of class 1" in text
    assert "do not rely on them" in text


@pytest.mark.slow
def test_trust_of_a_stack_is_the_same_wherever_it_is_loaded(tmp_path: Path) -> None:
    folder, _ = finetune_chains(tmp_path, model="rmat-small", head="stack")
    model, processor = load_predictor(folder)
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    again, _ = load_predictor(tmp_path / "again")
    for name, values in model.trust_head.state_dict().items():
        assert torch.equal(values, again.trust_head.state_dict()[name])
    first, second = (predict(it, TABLE_SMILES) for it in (folder, tmp_path / "again"))
    for name in ("values", "lower", "upper", "novelty"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    (visited,) = predict_without_package(folder, ["CCO"], folder=tmp_path / "alone")
    (prediction,) = visited["predictions"]
    (one,) = predict(folder, ["CCO"]).to_columns()["lower_y"]
    assert prediction["lower"] == pytest.approx(one, rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_one_group_of_a_split_has_folds_of_molecules_and_says_so(tmp_path: Path) -> None:
    # chains have no scaffold: all of them are one
    options = {**KERNEL, "split": "scaffold", "split_column": "part"}
    table = [*CHAINS, *(f"c1ccccc1{'C' * size}O" for size in range(12))]
    labels = [float(len(it)) for it in table]
    parts = ["train"] * 36 + ["valid"] * 6 + ["test"] * 12
    columns = {"smiles": table, "y": labels, "part": parts}
    result = run_finetuning(build_tiny_arguments(tmp_path, columns, num_workers=0, **options))
    model, _ = load_predictor(tmp_path / "run")
    assert model.config.trust["threshold"] < 1
    assert any("one group" in it for it in result.notes)


def test_labels_without_intervals_are_counted_beside_the_rows_of_the_others() -> None:
    trust = {"num_rows": [0, 104, 230], "source": "folds"}
    config: Any = SimpleNamespace(trust=trust, problem_type="regression", output_names=[])
    text = describe_trust(config)[0]
    assert "104 to 230 rows of a label (1 of 3 have too few" in text
