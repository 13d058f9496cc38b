"""Two processes on the CPU, started by torchrun."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed_training import NUM_EVAL_ROWS, NUM_TRAIN_ROWS, train
from parallel_plans import compute
from processes import run_python
from safetensors.torch import load_file

from rmat_hf.inference.prediction import predict

SCRIPT = Path(__file__).resolve().parents[1] / "distributed_training.py"
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ON_CPU = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def run_on_two_processes(mode: str, folder: Path) -> None:
    done = run_python([*LAUNCHER, SCRIPT, mode, folder], folder=folder, environment=ON_CPU)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["table", "stream"])
def test_two_processes_share_the_rows_and_end_with_the_same_weights(
    tmp_path: Path, source: str
) -> None:
    run_on_two_processes(source, tmp_path)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [report["num_processes"] for report in reports] == [2, 2]
    rows = [set(report["rows"]) for report in reports]
    assert not rows[0] & rows[1]
    assert rows[0] | rows[1] == set(range(NUM_TRAIN_ROWS))
    assert [len(report["rows"]) for report in reports] == [NUM_TRAIN_ROWS // 2] * 2

    # one process with the batches of both, labels missing in half of the cells
    (tmp_path / "alone").mkdir()
    train(tmp_path / "alone", source="table", num_eval_rows=NUM_EVAL_ROWS, batch_size=8)
    alone = json.loads((tmp_path / "alone" / "0.json").read_text())
    assert len(alone["predictions"]) == NUM_EVAL_ROWS
    for report in reports:
        # every row once and in order: the labels are all different
        assert report["labels"] == alone["labels"]
    if source == "table":
        for report in reports:
            # Adam would not notice gradients that are all half as large
            np.testing.assert_allclose(report["grad_norms"], alone["grad_norms"], rtol=1e-3)
        np.testing.assert_allclose(reports[0]["predictions"], alone["predictions"], atol=2e-3)
        expected = load_file(tmp_path / "alone" / "0.safetensors")
        for name, weight in expected.items():
            torch.testing.assert_close(first[name], weight, rtol=0, atol=1e-4, msg=name)


@pytest.mark.slow
def test_a_finetuning_on_two_processes_leaves_one_folder_that_predicts(tmp_path: Path) -> None:
    run_on_two_processes("finetune", tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert not list(tmp_path.glob("run.in_progress"))
    assert np.isfinite(predict(tmp_path / "run", ["CCO"]).values).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "split"), [("tp_size", ["up_proj"]), ("fsdp_size", ["node_proj", "key_pair", "norm"])]
)
def test_a_model_split_by_its_own_plan_computes_the_same(
    mode: str, split: list[str], tiny_model_folder: Path
) -> None:
    script = SCRIPT.with_name("parallel_plans.py")
    done = run_python(
        [*LAUNCHER, script, mode, tiny_model_folder], folder=tiny_model_folder, environment=ON_CPU
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "match nothing" not in done.stderr
    found = json.loads((tiny_model_folder / f"{mode}.json").read_text())
    expected = compute(tiny_model_folder)
    for name, size in expected["sizes"].items():
        if any(part in name for part in split):
            assert found["sizes"][name] == size // 2, name
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0, atol=1e-5)
    assert ("gradients" in found) == (mode == "fsdp_size")
    for name, gradient in found.get("gradients", {}).items():
        expected_gradient = expected["gradients"][name]
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5, err_msg=name)
