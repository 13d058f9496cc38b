"""What a run reports: the metrics of the predictions it holds, for a model and for an ensemble."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_finetuning import TABLE_PARTS, build_tiny_arguments

from rmat_hf.model.ensemble_rmat import RMatEnsembleForSequenceClassification
from rmat_hf.training.collators import FinetuningCollator
from rmat_hf.training.finetuning_report import build_finetuning_report
from rmat_hf.training.metrics import compute_regression_metrics
from rmat_hf.training.model_building import build_finetuning_model
from rmat_hf.training.model_card import FinetuningReport
from rmat_hf.training.task import PARTS, build_finetuning_task
from rmat_hf.training.trainer import FinetuningTrainer
from rmat_hf.training.trainer_options import build_training_arguments

NUM_MEMBERS = 3


def build_report(folder: Path, *, num_members: int) -> tuple[FinetuningReport, Any, Any]:
    columns = {"y": range(12), "part": TABLE_PARTS}
    arguments = build_tiny_arguments(folder, columns, num_members=num_members)
    task = build_finetuning_task(arguments)
    torch.manual_seed(0)
    models = [build_finetuning_model(arguments, task).eval() for _ in range(num_members)]
    model: Any = models[0]
    if num_members > 1:
        model = RMatEnsembleForSequenceClassification.from_members(models)
    trainer = FinetuningTrainer(
        model=model,
        args=build_training_arguments(arguments, folder),
        data_collator=FinetuningCollator(task.processor),
        eval_dataset=task.select("valid"),
    )
    report = build_finetuning_report(arguments, task, trainer=trainer, baselines={"svm": {}})
    return report, task, models


def compute_logits(model: Any, task: Any, part: str) -> np.ndarray:
    with torch.no_grad():
        batch = FinetuningCollator(task.processor)(list(task.select(part)))
        return model(**batch).logits.numpy()


@pytest.mark.parametrize("num_members", [1, NUM_MEMBERS])
def test_metrics_are_those_of_the_predictions_in_the_order_of_the_rows(
    num_members: int, tmp_path: Path
) -> None:
    report, task, models = build_report(tmp_path, num_members=num_members)
    for part in PARTS:
        expected = np.mean([compute_logits(model, task, part) for model in models], axis=0)
        np.testing.assert_allclose(report.predictions[part], expected, rtol=0, atol=1e-5)
        metrics = compute_regression_metrics(expected, task.labels(part), label_names=["y"])
        assert report.metrics[part]["rmse"] == pytest.approx(metrics["rmse"], abs=1e-5)
    assert report.baselines == {"svm": {}}
    assert report.dataset == "table.csv" and report.base_model == "scratch"


def test_an_ensemble_reports_every_member_alone(tmp_path: Path) -> None:
    report, task, models = build_report(tmp_path, num_members=NUM_MEMBERS)
    assert report.member_predictions is not None
    for idx, model in enumerate(models):
        for part in PARTS:
            logits = compute_logits(model, task, part)
            ours = report.member_predictions[part][:, idx]
            np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-5)
            metrics = compute_regression_metrics(logits, task.labels(part), label_names=["y"])
            rmse = report.member_metrics[idx][part]["rmse"]
            assert rmse == pytest.approx(metrics["rmse"], abs=1e-5)


def test_a_single_model_has_no_members(tmp_path: Path) -> None:
    report, _, _ = build_report(tmp_path, num_members=1)
    assert report.member_predictions is None and report.member_metrics == []
