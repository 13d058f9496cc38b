"""The benchmark end to end, on tiny models: protocol in, report out."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from full_disks import mounted_disk, resize_disk
from tiny import TINY_ARCHITECTURE
from tiny_evaluation import (
    FOREST,
    build_class_dataset,
    build_tiny_evaluation,
    build_tiny_protocol,
    save_protocol,
)
from tiny_finetuning import TABLE_SMILES, write_json, write_table

from rmat_hf.cli import main
from rmat_hf.errors import UserError
from rmat_hf.evaluation.accuracy_benchmark import run_accuracy_benchmark
from rmat_hf.output_folder import lock_output
from rmat_hf.training import baselines


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    small = baselines.Baseline("forest", (baselines.COUNTS,), {"num_trees": (5,)})
    monkeypatch.setitem(baselines.BASELINES, baselines.FOREST, small)


def list_states(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file of the runs."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for name in ("runs", "baselines")
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }


def read_outputs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("report.md", "results.json")]


@pytest.mark.slow
def test_second_call_recomputes_nothing_and_a_changed_argument_only_its_model(
    tmp_path: Path,
) -> None:
    content = build_tiny_protocol(tmp_path)
    arguments = build_tiny_evaluation(tmp_path, content)
    lines: list[str] = []
    results = run_accuracy_benchmark(arguments, report_progress=lines.append)
    assert results["is_complete"]
    assert len(lines) == 6
    out = tmp_path / "out"
    states, outputs = list_states(out), read_outputs(out)
    report = outputs[0].decode()
    assert str(tmp_path) not in "".join(text.decode() for text in outputs)
    for expected in ("| tiny fast |", FOREST, "Paired differences", "epoch 1 of 1 by rmse"):
        assert expected in report
    assert {path.name for path in (out / "plots").iterdir()} == {
        "numbers_parity.png",
        "numbers_distance.png",
    }

    lines.clear()
    run_accuracy_benchmark(arguments, report_progress=lines.append)
    assert lines == ["4 of 4 runs are there already.", "2 of 2 runs are there already."]
    assert list_states(out) == states
    assert read_outputs(out) == outputs

    content["models"]["tiny fast"]["learning_rate"] = 0.02
    lines.clear()
    run_accuracy_benchmark(build_tiny_evaluation(tmp_path, content), report_progress=lines.append)
    assert [line for line in lines if "Finished" in line] == [
        "Finished: tiny fast, numbers, part_0, seed 0",
        "Finished: tiny fast, numbers, part_1, seed 0",
    ]
    assert {name: state for name, state in list_states(out).items() if name in states} == states


@pytest.mark.slow
def test_of_a_grid_the_best_on_valid_is_the_model(tmp_path: Path) -> None:
    content = build_tiny_protocol(tmp_path, baselines=[])
    model = {**content["models"]["tiny"], "recipe": "authors", "num_train_epochs": 2}
    model["model_config"] = {**TINY_ARCHITECTURE, "pair_terms": ["keys"]}
    content["models"] = {"tiny": {**model, "grid": {"noam_factor": [1e-9, 0.1], "batch_size": [4]}}}
    results = run_accuracy_benchmark(build_tiny_evaluation(tmp_path, content))
    assert results["is_complete"]
    assert len(results["runs"]) == 4
    entries = {
        it["split"]: it for it in results["datasets"]["numbers"]["methods"]["tiny"]["metrics"]
    }
    for split, entry in entries.items():
        own = [run for run in results["runs"] if run["split"] == split]
        assert [run["setting"]["noam_factor"] for run in own] == [1e-9, 0.1]
        metrics = [
            json.loads((tmp_path / "out" / run["folder"] / "metrics.json").read_text())
            for run in own
        ]
        (chosen,) = [idx for idx, run in enumerate(own) if run["is_chosen"]]
        errors = [found["valid"]["rmse"] for found in metrics]
        assert errors[chosen] == min(errors) < max(errors)
        assert entry["test"]["rmse"] == pytest.approx(metrics[chosen]["test"]["rmse"], rel=1e-5)
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.count("batch_size 4; best of the grid on valid; last epoch: learning_rate") == 2


@pytest.mark.slow
def test_scores_are_those_of_the_runs_and_a_tool_stands_beside_them(tmp_path: Path) -> None:
    tool = write_table(
        tmp_path / "tool.csv",
        {
            "dataset": ["classes"] * 4,
            "split": ["part_0"] * 4,
            "seed": [0, 0, 1, 1],
            "row": [10, 11] * 2,
            "prediction": [0.1, 0.9] * 2,
        },
    )
    content = build_tiny_protocol(tmp_path, predictions={"oracle": str(tool)}, baselines=[])
    content["datasets"] = {"classes": build_class_dataset()}
    del content["models"]["tiny fast"]
    results = run_accuracy_benchmark(build_tiny_evaluation(tmp_path, content))
    summary = results["datasets"]["classes"]
    assert summary["methods"]["oracle"]["test"] == {"mean": 1.0, "std": 0.0, "num_values": 2}
    assert summary["methods"]["oracle"]["valid"]["mean"] is None
    for run, scored in zip(results["runs"], summary["methods"]["tiny"]["metrics"], strict=True):
        metrics = json.loads((tmp_path / "out" / run["folder"] / "metrics.json").read_text())
        assert scored["test"]["roc_auc"] == metrics["test"]["roc_auc"]
    (comparison,) = summary["comparisons"]
    assert (comparison["method"], comparison["reference"]) == ("tiny", "oracle")
    assert comparison["num_wins"] == 0
    assert {path.name for path in (tmp_path / "out" / "plots").iterdir()} == {
        "classes_roc.png",
        "classes_calibration.png",
        "classes_distance.png",
    }
    assert "tool.csv" in json.dumps(results["protocol"])
    assert str(tmp_path) not in json.dumps(results)


@pytest.mark.slow
def test_failed_run_is_reported_and_a_dropped_row_is_dropped_for_all(tmp_path: Path) -> None:
    content = build_tiny_protocol(tmp_path)
    del content["datasets"]["numbers"]["splits"][1]
    table = tmp_path / "data" / "table.csv"
    table.write_text(table.read_text().replace(TABLE_SMILES[3], "not a molecule"))
    overrides = write_json(tmp_path / "overrides.json", {"optim": "no_such_optimizer"})
    content["models"]["tiny fast"]["training_arguments"] = overrides
    results = run_accuracy_benchmark(build_tiny_evaluation(tmp_path, content))
    assert not results["is_complete"]
    (failure,) = results["failures"]
    assert failure["run"] == "tiny fast, numbers, part_0, seed 0"
    assert "no_such_optimizer" in failure["reason"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Incomplete: 1 runs failed" in report
    assert "(of 0, incomplete)" in report
    assert str(tmp_path) not in report
    summary = results["datasets"]["numbers"]
    assert summary["methods"]["tiny"]["test"]["num_values"] == 1
    (fold,) = summary["folds"]
    assert fold["num_rows"] == {"train": 7, "valid": 2, "test": 2}
    assert fold["num_dropped"] == 1


def test_a_folder_of_something_else_or_in_use_is_left_alone(tmp_path: Path) -> None:
    arguments = build_tiny_evaluation(tmp_path, build_tiny_protocol(tmp_path))
    with lock_output(arguments.output_dir), pytest.raises(UserError, match="Another run"):
        run_accuracy_benchmark(arguments)
    assert not Path(arguments.output_dir).exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="holds something else"):
        run_accuracy_benchmark(arguments)


# Disks


def run_command(folder: Path, num_proc: int) -> int:
    flags: list[Any] = ["--data", folder / "data", "--protocol", folder / "protocol.json"]
    flags += ["--output-dir", folder / "disk" / "out", "--feature-cache", "none"]
    flags += ["--num-proc", num_proc, "--num-resamples", 20]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rmat", "benchmark", *map(str, flags)])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "num_proc"), [("64k", 0), ("4k", 0), ("600k", 0), ("64k", 2)])
def test_benchmark_on_a_full_disk_continues_when_there_is_room(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], size: str, num_proc: int
) -> None:
    """No room for anything, for the first run, and for the runs or the plots after it."""
    save_protocol(tmp_path, build_tiny_protocol(tmp_path))
    with mounted_disk(tmp_path / "disk", f"size={size}") as disk:
        assert run_command(tmp_path, num_proc) in (1, 2)
        errors = capfd.readouterr().err
        assert "Traceback" not in errors
        before = list_states(disk / "out")
        finished = {path.parent for path in disk.glob("out/runs/*/predictions.csv")}
        finished = {folder for folder in finished if folder.suffix != ".in_progress"}
        resize_disk(disk, "64m")
        assert run_command(tmp_path, num_proc) == 0
        errors = capfd.readouterr().err
        assert "Traceback" not in errors
        after = list_states(disk / "out")
        for folder in finished:
            place = f"runs/{folder.name}/"
            kept = {name: state for name, state in before.items() if name.startswith(place)}
            assert kept.items() <= after.items()
        assert json.loads((disk / "out" / "results.json").read_text())["is_complete"]
        assert not list(disk.rglob("*.tmp"))
        assert not list(disk.rglob("*.in_progress"))
