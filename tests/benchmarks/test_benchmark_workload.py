"""What is measured is what it says: these molecules, this model, this many operations."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_workload import (
    BenchmarkArguments,
    build_benchmark_model,
    build_steps,
    build_workload,
    compute_forward_flops,
    load_molecules,
)
from tiny import TINY_ARCHITECTURE, TINY_SMILES
from tiny_finetuning import TABLE_SMILES, write_table
from torch.utils.flop_counter import FlopCounterMode

from rmat_hf.errors import UserError
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForPreTraining, RMatForSequenceClassification, RMatModel
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.arguments import SCRATCH_ARCHITECTURE


def build_arguments(folder: Path, smiles: list[str] | None = None, **options: Any) -> Any:
    smiles = TABLE_SMILES if smiles is None else smiles
    fields = {
        "input": str(write_table(folder / "table.csv", {"smiles": smiles})),
        "num_molecules": len(smiles),
        "geometry": "bounds",
        "batch_size": 4,
    }
    return BenchmarkArguments(**{**fields, **options})


def build_tiny_workload(arguments: BenchmarkArguments, **config: Any) -> Any:
    fields = {**TINY_ARCHITECTURE, "num_labels": 1, "problem_type": "regression", **config}
    model = RMatForSequenceClassification(RMatConfig(**fields))
    return build_workload(
        arguments,
        load_molecules(arguments),
        model=model,
        processor=RMatProcessor(geometry="bounds"),
    )


def test_molecules_are_evenly_spaced_over_the_table(tmp_path: Path) -> None:
    smiles = ["C" * (row + 1) for row in range(11)]
    arguments = build_arguments(tmp_path, smiles, num_molecules=3)
    assert load_molecules(arguments) == [smiles[0], smiles[5], smiles[10]]


def test_bundled_table_is_the_default() -> None:
    assert len(load_molecules(BenchmarkArguments(num_molecules=5))) == 5


def test_table_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 12 rows, fewer than --num-molecules 13\. Ask for"):
        load_molecules(build_arguments(tmp_path, num_molecules=13))


def test_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no column 'SMILES'"):
        load_molecules(build_arguments(tmp_path, smiles_column="SMILES"))


def test_repeated_and_unusable_molecules_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workload = build_tiny_workload(build_arguments(tmp_path, ["CCO", "C1CC", "CCN", "CCO", "C"]))
    assert workload.molecules == ["CCO", "CCN", "C"]
    assert workload.num_nodes.tolist() == [4, 4, 2]
    assert "Left out 2 molecules" in caplog.text


def test_table_without_a_usable_molecule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No molecule of .* has features\. The first: "):
        build_tiny_workload(build_arguments(tmp_path, ["C1CC", "C1CCC"]))


def test_named_sizes_have_their_architecture() -> None:
    scratch, processor = build_benchmark_model(BenchmarkArguments(geometry="2d"))
    assert processor.geometry == "2d"
    assert {name: getattr(scratch.config, name) for name in SCRATCH_ARCHITECTURE} == (
        SCRATCH_ARCHITECTURE
    )
    small, processor = build_benchmark_model(BenchmarkArguments(model="small"))
    assert processor.geometry == "conformer"
    assert (small.config.hidden_size, small.config.num_hidden_layers) == (256, 4)


@pytest.mark.parametrize(
    "model_class", [RMatModel, RMatForPreTraining, RMatForSequenceClassification]
)
def test_saved_model_with_any_head_can_be_measured(
    tmp_path: Path, tiny_config: RMatConfig, model_class: Any
) -> None:
    saved = model_class(tiny_config)
    saved.save_pretrained(tmp_path)
    RMatProcessor(geometry="bounds").save_pretrained(tmp_path)
    model, processor = build_benchmark_model(BenchmarkArguments(model=str(tmp_path)))
    assert processor.geometry == "bounds"
    weight = saved.base_model.embeddings.node_proj.weight
    assert torch.equal(model.rmat.embeddings.node_proj.weight, weight)


def test_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=tmp_path.name):
        build_benchmark_model(BenchmarkArguments(model=str(tmp_path)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("problem_type", "num_labels"),
    [
        ("regression", 2),
        ("multi_label_classification", 3),
        ("single_label_classification", 2),
        (None, 3),
    ],
)
def test_every_step_runs_with_every_head_and_training_learns(
    tmp_path: Path, dtype: str, problem_type: str | None, num_labels: int
) -> None:
    config: dict[str, Any] = {"problem_type": problem_type, "num_labels": num_labels}
    if problem_type == "single_label_classification":
        config["label_name"] = "y"
    workload = build_tiny_workload(build_arguments(tmp_path, TINY_SMILES, dtype=dtype), **config)
    before = {name: weight.clone() for name, weight in workload.model.state_dict().items()}
    steps = build_steps(workload)
    for what in ("featurize", "predict", "embed", "forward"):
        steps[what]()
        assert all(
            torch.equal(weight, before[name])
            for name, weight in workload.model.state_dict().items()
        ), what
    steps["train"]()
    after = workload.model.state_dict()
    assert all(weight.isfinite().all() for weight in after.values())
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert "rmat.embeddings.node_proj.weight" in changed


def count_addmm_flops(_added: list[int], left: list[int], right: list[int], **_options: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


@pytest.mark.parametrize("attention_form", ["paper", "reference"])
def test_operations_are_those_that_torch_counts(tmp_path: Path, attention_form: str) -> None:
    """One molecule: no padding. The table of codes does not depend on the molecules."""
    workload = build_tiny_workload(
        build_arguments(tmp_path, ["CC(C)(C)c1ccc(cc1)C(=O)Nc1ccccc1"]),
        attention_form=attention_form,
    )
    config = workload.model.config
    forward = build_steps(workload)["forward"]
    # torch counts this product only where it makes a tensor of its own
    in_place = {torch.ops.aten.addmm_: count_addmm_flops}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        forward()
    counts = counter.get_flop_counts()
    layers = sum(
        sum(counts[f"RMatForSequenceClassification.rmat.layers.{layer}"].values())
        for layer in range(config.num_hidden_layers)
    )
    head_size = config.hidden_size // config.num_attention_heads
    num_codes = len(workload.model.rmat.pair_features.code_features)
    code_tables = 2 * 2 * num_codes * config.num_code_features * head_size
    expected = layers - config.num_hidden_layers * code_tables
    assert compute_forward_flops(config, workload.num_nodes) == pytest.approx(expected, rel=1e-6)


def test_operations_of_molecules_add_up() -> None:
    config = RMatConfig(**TINY_ARCHITECTURE)
    parts = [compute_forward_flops(config, np.array([num_nodes])) for num_nodes in (2, 5, 5)]
    assert compute_forward_flops(config, np.array([2, 5, 5])) == pytest.approx(sum(parts))
