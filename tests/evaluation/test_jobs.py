import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_evaluation import FOREST, build_rows, build_tiny_protocol, load_tiny_protocol

from rmat_hf.evaluation.jobs import (
    SETTING_FILE,
    Job,
    build_baseline_jobs,
    build_finetuning_jobs,
    list_versions,
    run_job,
)
from rmat_hf.evaluation.protocol import Fold, Protocol
from rmat_hf.evaluation.row_predictions import load_row_predictions
from rmat_hf.training import baselines

FOLD = Fold("numbers", "part_0", 0)


def build(protocol: Protocol, output_dir: Path = Path("out")) -> list[Job]:
    return build_finetuning_jobs(protocol, output_dir=output_dir, feature_cache="none")


def list_folders(folder: Path, **sections: Any) -> list[str]:
    return [job.folder.name for job in build(load_tiny_protocol(folder, **sections))]


def test_every_fold_and_model_is_a_run_in_a_folder_of_its_own(tmp_path: Path) -> None:
    jobs = build(load_tiny_protocol(tmp_path))
    assert [str(job) for job in jobs] == [
        f"{model}, numbers, {split}, seed 0"
        for split in ("part_0", "part_1")
        for model in ("tiny", "tiny fast")
    ]
    assert len({job.folder for job in jobs}) == 4
    assert jobs[1].folder.name.startswith("numbers-tiny_fast-part_0-seed_0-")
    assert jobs[1].task.learning_rate == 0.01  # type: ignore[union-attr]  # a model's
    # an interrupted run continues
    assert all(job.task.resume for job in jobs)  # type: ignore[union-attr]  # a model's
    assert not any(job.is_finished for job in jobs)


def test_names_do_not_lead_out_of_the_output_folder(tmp_path: Path) -> None:
    protocol = build_tiny_protocol(tmp_path)
    models = {"../../model": protocol["models"]["tiny"], "/etc/passwd": protocol["models"]["tiny"]}
    datasets = {"../..": protocol["datasets"]["numbers"]}
    jobs = build(load_tiny_protocol(tmp_path, models=models, datasets=datasets), tmp_path / "out")
    assert len({job.folder for job in jobs}) == 4
    for job in jobs:
        assert job.folder.resolve().parent == tmp_path / "out" / "runs"
        assert job.log_file.resolve().parent == tmp_path / "out" / "runs"


def test_folder_depends_on_arguments_data_and_weights_only(tmp_path: Path) -> None:
    before = list_folders(tmp_path)
    assert list_folders(tmp_path) == before
    models = build_tiny_protocol(tmp_path)["models"]
    models["tiny"]["weight_decay"] = 0.5
    after = list_folders(tmp_path, models=models)
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True] * 2
    protocol = load_tiny_protocol(tmp_path)
    changed = replace(protocol.datasets["numbers"], checksum="other")
    jobs = build(replace(protocol, datasets={"numbers": changed}))
    assert not {job.folder.name for job in jobs} & set(before)


def test_contradictory_fields_are_an_error_that_names_the_model(tmp_path: Path) -> None:
    models = build_tiny_protocol(tmp_path)["models"]
    models["tiny"]["dropout"] = 2.0
    with pytest.raises(
        ValueError, match=r"Model 'tiny' on numbers, part_0, seed 0: --dropout 2\.0"
    ):
        list_folders(tmp_path, models=models)


def test_baseline_is_fitted_on_the_given_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "NUM_TREES", 5)
    protocol = load_tiny_protocol(tmp_path)
    rows = build_rows().select(np.array([0, 1, 2, 3, 5, 6, 8, 9, 10, 11]))
    (job,) = build_baseline_jobs(protocol, {FOLD: rows}, output_dir=tmp_path)
    run_job(job)
    assert job.is_finished
    loaded = load_row_predictions(job.folder, label_names=["y"])
    assert loaded.rows.tolist() == rows.rows.tolist()
    assert loaded.parts == rows.parts
    np.testing.assert_array_equal(loaded.labels, rows.labels)
    assert np.isfinite(loaded.predictions).all()
    setting = json.loads((job.folder / SETTING_FILE).read_text())
    assert setting == {"part": None, "setting": {"y": {"num_trees": 5, "num_train_rows": 6}}}
    record = json.loads(job.record_file.read_text())
    assert record["versions"] == list_versions()
    assert record["seconds"] > 0


def test_folder_of_a_baseline_depends_on_rows_and_not_on_models(tmp_path: Path) -> None:
    def find_folder(**changes: Any) -> Path:
        protocol = load_tiny_protocol(tmp_path)
        rows = build_rows(**changes)
        (job,) = build_baseline_jobs(protocol, {FOLD: rows}, output_dir=tmp_path)
        assert job.method == FOREST
        return job.folder

    before = find_folder()
    assert find_folder(predictions=np.zeros((12, 1)), num_dropped=4) == before
    assert find_folder(labels=np.ones((12, 1))) != before
