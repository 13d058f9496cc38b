"""An ensemble: made of members, saved as one folder, loaded with and without the package."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from processes import predict_without_package
from saved_folder import ENSEMBLE_CLASSES, assert_folder_is_self_contained
from tiny import TINY_ARCHITECTURE, TINY_SMILES
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoProcessor, pipeline

from rmat_hf.errors import UserError
from rmat_hf.inference.prediction import predict
from rmat_hf.inference.screening import PredictionArguments, run_embedding
from rmat_hf.loading import load_embedder, load_predictor, read_checkpoint
from rmat_hf.model.configuration_rmat import RMatConfig, RMatEnsembleConfig
from rmat_hf.model.ensemble_rmat import RMatEnsembleForSequenceClassification
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.pipeline_rmat import RMatPropertyPredictionPipeline
from rmat_hf.model.processing_rmat import RMatProcessor

EXACT = {"rtol": 0, "atol": 0}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
REGRESSION = {
    "problem_type": "regression",
    "id2label": {0: "logS", 1: "logP"},
    "label2id": {"logS": 0, "logP": 1},
    "label_mean": [1.0, -2.0],
    "label_std": [0.5, 3.0],
    "label_units": ["mol/l", "1"],
}


def build_member(seed: int, **options: Any) -> RMatForSequenceClassification:
    torch.manual_seed(seed)
    return RMatForSequenceClassification(
        RMatConfig(**{**TINY_ARCHITECTURE, **REGRESSION, **options})
    ).eval()


def build_members(number: int = 3, **options: Any) -> list[RMatForSequenceClassification]:
    return [build_member(seed, **options) for seed in range(number)]


@pytest.fixture
def members() -> list[RMatForSequenceClassification]:
    return build_members()


@pytest.fixture
def ensemble(members: list[RMatForSequenceClassification]) -> RMatEnsembleForSequenceClassification:
    return RMatEnsembleForSequenceClassification.from_members(members)


@pytest.fixture
def folder(
    ensemble: RMatEnsembleForSequenceClassification, processor: RMatProcessor, tmp_path: Path
) -> Path:
    ensemble.save_pretrained(tmp_path / "ensemble")
    processor.save_pretrained(tmp_path / "ensemble")
    return tmp_path / "ensemble"


@torch.no_grad()
def test_an_ensemble_predicts_the_mean_of_its_members(
    ensemble: RMatEnsembleForSequenceClassification, tiny_batch: dict[str, torch.Tensor]
) -> None:
    output = ensemble(**tiny_batch)
    alone = torch.stack([member(**tiny_batch).logits for member in ensemble.members], dim=1)
    torch.testing.assert_close(output.member_logits, alone, **EXACT)
    torch.testing.assert_close(output.logits, alone.mean(1), **EXACT)
    assert output.loss is None


def test_the_loss_of_an_ensemble_is_the_mean_of_its_members(
    ensemble: RMatEnsembleForSequenceClassification, tiny_batch: dict[str, torch.Tensor]
) -> None:
    labels = torch.arange(2.0 * len(TINY_SMILES)).view(-1, 2)
    labels[0, 1] = torch.nan
    loss = ensemble(**tiny_batch, labels=labels).loss
    alone = torch.stack([it(**tiny_batch, labels=labels).loss for it in ensemble.members])
    torch.testing.assert_close(loss, alone.mean(), **EXACT)
    loss.backward()
    assert all(p.grad is not None for p in ensemble.members[2].classifier.parameters())


def test_a_saved_ensemble_loads_with_the_same_predictions(
    folder: Path,
    ensemble: RMatEnsembleForSequenceClassification,
    tiny_batch: dict[str, torch.Tensor],
) -> None:
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(loaded) is RMatEnsembleForSequenceClassification
    assert type(loaded.config) is RMatEnsembleConfig and loaded.config.num_members == 3
    assert type(AutoProcessor.from_pretrained(folder)) is RMatProcessor
    with torch.no_grad():
        torch.testing.assert_close(loaded(**tiny_batch).logits, ensemble(**tiny_batch).logits)
    assert_folder_is_self_contained(
        folder, "RMatEnsembleForSequenceClassification", classes=ENSEMBLE_CLASSES
    )


@pytest.mark.slow
def test_a_saved_ensemble_works_without_the_package(folder: Path, tmp_path: Path) -> None:
    good, bad = predict_without_package(folder, ["CCO", "C1CC"], folder=tmp_path)
    expected = predict(folder, ["CCO"])
    for name, values in (("value", expected.values), ("spread", expected.spread)):
        found = [prediction[name] for prediction in good["predictions"]]
        assert found == pytest.approx(values[0].tolist(), rel=1e-5, abs=1e-5)
    assert bad["predictions"] is None and "unclosed ring" in bad["error"]


def test_the_pipeline_and_predict_give_every_label_its_spread(
    folder: Path, members: list[RMatForSequenceClassification], tiny_batch: dict[str, torch.Tensor]
) -> None:
    pipe = pipeline(
        "molecule-property-prediction",
        model=str(folder),
        pipeline_class=RMatPropertyPredictionPipeline,
    )
    with torch.no_grad():
        alone = torch.stack([member(**tiny_batch).logits for member in members]).double()
    mean, spread = alone.mean(0), alone.std(0, correction=0)
    predictions = predict(folder, TINY_SMILES)
    torch.testing.assert_close(torch.from_numpy(predictions.values).double(), mean, **TOLERANCE)
    torch.testing.assert_close(torch.from_numpy(predictions.spread).double(), spread, **TOLERANCE)
    for row, result in enumerate(pipe(TINY_SMILES)):
        assert result["predictions"] == [
            {
                "label": REGRESSION["id2label"][label],
                "unit": REGRESSION["label_units"][label],
                "value": pytest.approx(mean[row, label].item(), abs=1e-5),
                "spread": pytest.approx(spread[row, label].item(), abs=1e-5),
            }
            for label in range(2)
        ]


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        (REGRESSION, ["prediction_logS", "prediction_logP", "spread_logS", "spread_logP"]),
        (
            {"id2label": {0: "0", 1: "1"}, "label_name": "active"},
            ["prediction_active", "spread_active"],
        ),
        (
            {"id2label": {0: "low", 1: "high"}, "label_name": "dose"},
            [
                *("prediction_dose", "probability_dose_low", "probability_dose_high"),
                *("spread_dose_low", "spread_dose_high"),
            ],
        ),
    ],
)
def test_a_table_of_predictions_has_a_spread_per_label(
    options: dict[str, Any], columns: list[str], processor: RMatProcessor
) -> None:
    classes = {"problem_type": "single_label_classification", "label2id": None}
    classes |= dict.fromkeys(("label_mean", "label_std", "label_units"))
    members = build_members(2, **{**classes, **options})
    ensemble = RMatEnsembleForSequenceClassification.from_members(members)
    predictions = predict(ensemble, ["CCO", "C1CC", "CCN"], processor=processor)
    added = predictions.to_columns()
    assert [*added] == [*columns, "error"]
    for name in columns:
        assert added[name][1] is None and added[name][0] is not None


def test_an_ensemble_has_no_trust_of_its_members_and_they_keep_theirs(
    processor: RMatProcessor, tmp_path: Path
) -> None:
    def build_trust(threshold: float) -> dict[str, Any]:
        return {
            "trust": {
                **{"kind": "fingerprints", "num_references": 2, "num_rows": [9, 9]},
                **{"threshold": threshold, "source": "valid", "max_atoms": 9, "elements": [1]},
            }
        }

    # the domain of each is its own
    members = [build_member(0, **build_trust(0.5)), build_member(1, **build_trust(0.6))]
    ensemble = RMatEnsembleForSequenceClassification.from_members(members)
    plain = RMatEnsembleForSequenceClassification.from_members(build_members(2))
    results = [predict(it, TINY_SMILES, processor=processor) for it in (ensemble, plain)]
    assert results[0].lower is None
    torch.testing.assert_close(results[0].values, results[1].values, **EXACT)
    # no fingerprint of a molecule of training goes with it
    assert not [name for name in ensemble.state_dict() if "trust" in name]
    ensemble.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = predict(tmp_path, TINY_SMILES).values
    torch.testing.assert_close(loaded, results[0].values, **EXACT)
    for member in members:
        assert predict(member, ["CCO"], processor=processor).lower is not None


def test_members_that_do_not_belong_together_or_none_are_refused() -> None:
    for changed in ({"label_mean": [0.0, 0.0]}, {"num_hidden_layers": 1}):
        with pytest.raises(ValueError, match=next(iter(changed))):
            RMatEnsembleForSequenceClassification.from_members(
                [build_member(0), build_member(1, **changed)]
            )
    with pytest.raises(ValueError, match="at least one"):
        RMatEnsembleForSequenceClassification.from_members([])
    with pytest.raises(StrictDataclassError, match="num_members"):
        RMatEnsembleConfig(num_members=0)


def test_an_ensemble_is_refused_where_one_encoder_is_needed(folder: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "vectors.parquet")
    arguments = PredictionArguments(model=str(folder), smiles=["CCO"], output=output)
    for function, argument in (
        (load_embedder, folder),
        (read_checkpoint, folder),
        (run_embedding, arguments),
    ):
        with pytest.raises(UserError, match="is an ensemble"):
            function(argument)


def test_a_member_missing_from_the_weights_is_an_error(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.num_members = 4
    config.save_pretrained(folder)
    with pytest.raises(UserError, match=r"members\.3\..* are missing"):
        load_predictor(folder)
