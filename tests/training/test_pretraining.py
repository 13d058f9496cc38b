"""Pretraining end to end, on tiny models: corpus in, folder to finetune out."""

import json
import logging
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_finetuning import TABLE_SMILES, build_tiny_arguments, write_json
from tiny_pretraining import (
    ARCHITECTURE,
    CORPUS_SMILES,
    DESCRIPTORS,
    build_pretraining_arguments,
    write_pretraining_corpus,
)
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor, TrainerCallback

from rmat_hf.data.assay_labels import AssayLabels, canonicalize
from rmat_hf.data.stored_features import pack_dataset, read_molecule_descriptors
from rmat_hf.errors import UserError
from rmat_hf.inference.prediction import embed
from rmat_hf.loading import load_predictor
from rmat_hf.training import pretraining
from rmat_hf.training.finetuning import run_finetuning
from rmat_hf.training.objectives import load_objectives, save_objectives
from rmat_hf.training.objectives.objective import Objective
from rmat_hf.training.pretraining import (
    PretrainingResult,
    PretrainingTask,
    build_pretraining_task,
    run_pretraining,
)
from rmat_hf.training.pretraining_trainer import PretrainingTrainer

CODE_FILE = "modeling_rmat.py"
OWN_FILES = {
    *["config.json", "model.safetensors", "preprocessor_config.json", "README.md"],
    *["pretraining_targets.json", "metrics.json", "pretraining_arguments.json"],
    *["training_log.json", "loss_curves.png"],
}


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The copies that datasets makes go to a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> PretrainingResult:
    """A run on contexts and descriptors at once."""
    folder = tmp_path_factory.mktemp("joint")
    return run_pretraining(build_pretraining_arguments(folder))


def pretrain(folder: Path, **options: Any) -> Path:
    return run_pretraining(build_pretraining_arguments(folder, **options)).output_dir


def interrupt(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Leave a run that was stopped after its first checkpoint."""

    class Stop(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    create = PretrainingTrainer.__init__

    def create_and_stop(self: PretrainingTrainer, *args: Any, **fields: Any) -> None:
        create(self, *args, **fields)
        self.add_callback(Stop())

    with monkeypatch.context() as patch:
        patch.setattr(PretrainingTrainer, "__init__", create_and_stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(folder, **options)


@pytest.mark.parametrize(
    ("objective", "stages"),
    [
        pytest.param("contexts", {"contexts": {"context_loss"}}, marks=pytest.mark.slow),
        pytest.param("descriptors", {"descriptors": {"descriptor_loss"}}, marks=pytest.mark.slow),
        ("sequential", {"contexts": {"context_loss"}, "descriptors": {"descriptor_loss"}}),
        ("joint", {"joint": {"context_loss", "descriptor_loss"}}),
    ],
)
def test_a_run_leaves_one_folder_that_loads_everywhere(
    tmp_path: Path, joint: PretrainingResult, objective: Any, stages: dict[str, set[str]]
) -> None:
    result, place, options = joint, joint.output_dir.parent, {}
    if objective == "sequential":
        content = {**ARCHITECTURE, "pooling": "mean"}
        options["model_config"] = write_json(tmp_path / "mean_pooling.json", content)
    if objective != "joint":
        arguments = build_pretraining_arguments(tmp_path, objective=objective, **options)
        result, place = run_pretraining(arguments), tmp_path
    folder = place / "run"
    assert result.output_dir == folder
    names = {path.name for path in folder.iterdir()}
    code = {name for name in names if name.endswith(".py")}
    assert CODE_FILE in code
    assert names == OWN_FILES | code
    assert not list(place.glob("run.*")) and not list(place.glob(".run*"))

    written = json.loads((folder / "pretraining_arguments.json").read_text())
    assert (written["corpus"], written["output_dir"]) == ("corpus", "run")
    # the one that was computed with, not "auto"
    assert written["precision"] in {"float32", "bfloat16"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == result.metrics
    log = json.loads((folder / "training_log.json").read_text())
    assert list(metrics) == list(log) == list(stages)
    for stage, losses in stages.items():
        assert {name for name in metrics[stage] if name.endswith("_loss")} == losses
        assert any(losses <= set(row) for row in log[stage])

    model = AutoModelForPreTraining.from_pretrained(folder)
    objectives = load_objectives(folder)
    heads = {objective.head: objective.describe_head() for objective in objectives.values()}
    assert {f"{head}_loss" for head in heads} == set.union(*stages.values())
    assert model.config.pretraining_heads == heads
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.molecule_descriptors is None
    assert processor.geometry == "bounds"
    batch = processor(["CCO", "c1ccccc1"], return_tensors="pt")
    with torch.no_grad():
        outputs = model.eval()(**batch)
        pooled = AutoModel.from_pretrained(folder).eval()(**batch).pooler_output
    if "context" in heads:
        assert outputs.context_logits.shape == (2, 7, heads["context"]["size"])
    if "descriptor" in heads:
        assert outputs.descriptor_logits.shape == (2, len(DESCRIPTORS))
        torch.testing.assert_close(
            model.descriptor_head(pooled), outputs.descriptor_logits, rtol=0, atol=1e-6
        )


def test_a_pretrained_model_can_be_finetuned_and_embeds(
    tmp_path: Path, joint: PretrainingResult
) -> None:
    folder = joint.output_dir
    (tmp_path / "table").mkdir()
    arguments = build_tiny_arguments(
        *(tmp_path / "table", {"y": [len(smiles) for smiles in TABLE_SMILES]}),
        model=str(folder),
        num_train_epochs=1,
        batch_size=4,
        learning_rate=1e-9,
        split="random",
    )
    finetuned = run_finetuning(arguments)
    assert np.isfinite(finetuned.metrics["test"]["rmse"])
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "table" / "run" / "model.safetensors")
    shared = [name for name in after if name.startswith("rmat.")]
    assert len(shared) > 20
    for name in shared:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    vectors = embed(folder, ["CCO", "CCN"])
    assert np.isfinite(np.asarray(getattr(vectors, "values", vectors))).all()


def test_a_model_continues_where_it_stood(tmp_path: Path, joint: PretrainingResult) -> None:
    folder = joint.output_dir
    (tmp_path / "more").mkdir()
    corpus = write_pretraining_corpus(
        tmp_path / "other", ["CCCl", "CCBr", "OCCCl", "CCCBr", "NCCCl", "CCCCBr"] * 3
    )
    more = pretrain(
        *(tmp_path / "more",), corpus=str(corpus), model=str(folder), learning_rate=1e-9
    )
    before, after = (load_file(path / "model.safetensors") for path in (folder, more))
    assert set(before) == set(after)
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-6)
    name = "pretraining_targets.json"
    assert (folder / name).read_text() == (more / name).read_text()
    assert "started from: run" in (more / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_the_losses_fall_to_a_fraction_on_a_corpus_seen_often(
    tmp_path: Path, streaming: bool
) -> None:
    write_json(tmp_path / "plain.json", {**ARCHITECTURE, "hidden_dropout_prob": 0.0})
    smiles = [f"{'C' * n}{end}" for n in range(2, 8) for end in ("O", "N", "C#N", "Cl")]
    write_pretraining_corpus(tmp_path / "corpus", smiles, descriptors=["MolWt", "TPSA", "MolLogP"])
    folder = pretrain(
        tmp_path,
        objective="joint",
        model_config=str(tmp_path / "plain.json"),
        min_context_count=1,
        max_steps=250,
        batch_size=24,
        num_evaluations=1,
        streaming=streaming,
    )
    log = json.loads((folder / "training_log.json").read_text())["joint"]
    rows = [row for row in log if "context_loss" in row]
    assert rows[-1]["descriptor_loss"] < 0.05 * rows[0]["descriptor_loss"]
    # nothing tells O from N at the end of a chain if it is masked
    assert rows[-1]["context_loss"] < 0.5 * rows[0]["context_loss"]


@pytest.mark.slow
def test_counts_assays_and_atoms_are_learned_on_a_corpus_seen_often(tmp_path: Path) -> None:
    write_json(tmp_path / "plain.json", {**ARCHITECTURE, "hidden_dropout_prob": 0.0})
    labels = {
        smiles: AssayLabels(
            # above 12 letters a molecule is only known to be longer
            ["length", "aromatic"],
            ["=" if len(smiles) <= 12 else ">", "class"],
            [float(min(len(smiles), 12)), float("c1" in smiles)],
        )
        for smiles in canonicalize(CORPUS_SMILES)
    }
    write_pretraining_corpus(tmp_path / "corpus", labels=labels)
    mix = "counts,assays,atoms"
    folder = pretrain(
        tmp_path,
        objective=mix,
        model_config=str(tmp_path / "plain.json"),
        max_steps=400,
        batch_size=32,
        num_evaluations=1,
    )
    rows = [row for row in _read_log(folder, mix) if "count_loss" in row]
    # one evaluation at the end, and the report
    assert sum("eval_loss" in row for row in _read_log(folder, mix)) <= 2
    for head, share in {"count": 0.7, "assay": 0.1}.items():
        assert rows[-1][f"{head}_loss"] < share * rows[0][f"{head}_loss"], head
    metrics = json.loads((folder / "metrics.json").read_text())[mix]
    assert metrics["assay_class_error"] < 0.2
    assert metrics["atom_r2"] > 0.1


def test_an_unknown_field_or_value_of_the_configuration_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    for content, message in (
        ({"hiden_size": 32}, r"unknown fields \['hiden_size'\]"),
        ({"hidden_size": "many"}, "hidden_size"),
    ):
        config = write_json(tmp_path / "wrong.json", content)
        with pytest.raises(ValueError, match=message):
            pretrain(tmp_path, model_config=config)
    fields = write_json(tmp_path / "fields.json", {"lerning_rate": 1.0})
    with pytest.raises(ValueError, match="lerning_rate"):
        pretrain(tmp_path, training_arguments=fields)
    assert not list(tmp_path.glob("run*"))


@pytest.mark.slow
def test_an_interrupted_run_is_continued_or_replaced_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(tmp_path, monkeypatch)
    assert list((tmp_path / "run.in_progress").glob("stage-0/checkpoint-*"))
    with pytest.raises(UserError, match=r"--resume to continue it, or --overwrite"):
        pretrain(tmp_path)
    with pytest.raises(UserError, match=r"learning_rate, seed differ.*--overwrite"):
        pretrain(tmp_path, resume=True, seed=1, learning_rate=1.0)
    assert not (tmp_path / "run").exists()
    # what only starts it may change
    resumed = load_file(pretrain(tmp_path, resume=True) / "model.safetensors")
    interrupt(tmp_path, monkeypatch, overwrite=True)
    anew = load_file(pretrain(tmp_path, overwrite=True) / "model.safetensors")
    assert all(torch.equal(anew[name], resumed[name]) for name in resumed)
    assert not (tmp_path / "run.in_progress").exists()


@pytest.mark.slow
def test_a_stream_of_a_weighted_mix_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"contexts": 1.0, "descriptors": 1.0, "counts": 0.5, "assays": 2.0, "atoms": 0.25}
    heads = ["context", "descriptor", "count", "assay", "atom"]
    labels = {
        smiles: AssayLabels(["size", "aromatic"], ["=", "class"], [len(smiles), "c1" in smiles])
        for smiles in canonicalize(CORPUS_SMILES)
    }
    write_pretraining_corpus(tmp_path / "corpus", labels=labels)
    mix = "contexts,descriptors,counts=0.5,assays=2,atoms=0.25"
    options = {"objective": mix, "streaming": True, "max_steps": 8}
    interrupt(tmp_path, monkeypatch, **options)
    folder = pretrain(tmp_path, resume=True, **options)
    resumed = load_file(folder / "model.safetensors")
    row = next(row for row in reversed(_read_log(folder, mix)) if "eval_loss" in row)
    parts = [row[f"eval_{head}_loss"] for head in heads]
    expected = sum(map(operator.mul, parts, weights.values()))
    assert row["eval_loss"] == pytest.approx(expected)
    straight = pretrain(tmp_path, output_dir=str(tmp_path / "straight"), **options)
    again = load_file(straight / "model.safetensors")
    assert all(torch.equal(again[name], resumed[name]) for name in again)
    assert "count_head.in_proj.weight" in again
    for row in _read_log(straight, mix):
        if "loss" in row:
            parts = [row[f"{head}_loss"] for head in heads]
            expected = sum(map(operator.mul, parts, weights.values()))
            assert row["loss"] == pytest.approx(expected, abs=1e-3)
    assert f"learned: {mix}" in (straight / "README.md").read_text()
    assert list(load_objectives(straight)) == list(weights)


def _read_log(folder: Path, stage: str) -> list[dict[str, Any]]:
    return json.loads((folder / "training_log.json").read_text())[stage]


@pytest.mark.slow
def test_a_stage_that_is_finished_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    straight = load_file(pretrain(tmp_path, objective="sequential") / "model.safetensors")
    train = PretrainingTrainer.train
    stages = []

    def stop_second(self: PretrainingTrainer, *args: Any, **fields: Any) -> Any:
        stages.append(Path(str(self.args.output_dir)).name)
        if len(stages) == 2:
            raise KeyboardInterrupt
        return train(self, *args, **fields)

    monkeypatch.setattr(PretrainingTrainer, "train", stop_second)
    options = {"objective": "sequential", "output_dir": str(tmp_path / "second")}
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path, **options)
    with caplog.at_level(logging.WARNING):
        resumed = load_file(pretrain(tmp_path, resume=True, **options) / "model.safetensors")
    assert stages == ["stage-0", "stage-1", "stage-1"]
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


# The task


def build_task(folder: Path, *, streaming: bool = False, **options: Any) -> PretrainingTask:
    if streaming:
        options |= {"streaming": True, "max_steps": 1}
    return build_pretraining_task(build_pretraining_arguments(folder, **options))


def get_states(task: PretrainingTask) -> dict[str, Any]:
    return {name: objective.state for name, objective in task.objectives.items()}


def list_molecules(dataset: Any) -> list[bytes]:
    if isinstance(dataset, datasets.Dataset):
        return pack_dataset(dataset)
    return [row["features"] for row in dataset]


def test_table_and_stream_hold_out_the_same_molecules(tmp_path: Path) -> None:
    table, stream = build_task(tmp_path), build_task(tmp_path, streaming=True)
    assert isinstance(stream.train, datasets.IterableDataset)
    valid = list_molecules(table.valid)
    train = list_molecules(table.train)
    assert list_molecules(stream.valid) == valid
    assert list_molecules(stream.train) == train
    assert len(train) + len(valid) == len(CORPUS_SMILES)
    assert 0.05 < len(valid) / len(CORPUS_SMILES) < 0.35
    assert not set(train) & set(valid)
    assert table.valid["num_nodes"][:] == stream.valid["num_nodes"][:]
    assert get_states(stream) == get_states(table)


def test_a_molecule_is_held_out_whatever_stands_beside_it(tmp_path: Path) -> None:
    valid = set(list_molecules(build_task(tmp_path).valid))
    corpus = write_pretraining_corpus(tmp_path / "other", CORPUS_SMILES[::-2], shard_size=7)
    other = build_task(tmp_path, corpus=str(corpus))
    assert set(list_molecules(other.valid)) <= valid
    assert not set(list_molecules(other.train)) & valid
    # twice in a corpus: both copies are on the same side
    corpus = write_pretraining_corpus(tmp_path / "twice", [*CORPUS_SMILES, *CORPUS_SMILES])
    twice = build_task(tmp_path, corpus=str(corpus))
    assert sorted(list_molecules(twice.valid)) == sorted([*valid, *valid])


def test_a_stream_holds_out_molecules_of_its_beginning_and_never_trains_on_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = build_task(tmp_path)
    monkeypatch.setattr(pretraining, "MAX_STREAMED_VALID", 8)
    stream = build_task(tmp_path, streaming=True)
    valid = list_molecules(stream.valid)
    assert 0 < len(valid) < len(table.valid)
    assert valid == list_molecules(table.valid)[: len(valid)]
    assert list_molecules(stream.train) == list_molecules(table.train)


@pytest.mark.parametrize("streaming", [False, True])
def test_targets_come_from_train_and_name_the_descriptors_of_the_corpus(
    tmp_path: Path, streaming: bool
) -> None:
    task = build_task(tmp_path, streaming=streaming)
    quantiles = get_states(task)["descriptors"]
    assert list(quantiles) == DESCRIPTORS
    train = read_molecule_descriptors(list_molecules(task.train))
    ends = np.array([[values[0], values[-1]] for values in quantiles.values()])
    np.testing.assert_allclose(ends, np.stack([train.min(0), train.max(0)], axis=1), rtol=1e-7)
    assert task.processor.geometry == "bounds"


def write_objectives(folder: Path, *names: str) -> dict[str, Any]:
    """A folder with nothing but the targets of another corpus; their states."""
    smiles = ["CCCl", "CCCCCl", "OCCCl", "CCBr", "CCCBr", "OCBr"]
    corpus = write_pretraining_corpus(folder / "corpus", smiles, shard_size=6)
    task = build_task(folder, corpus=str(corpus), valid_fraction=0.3)
    kept: dict[str, Objective] = {name: task.objectives[name] for name in names}
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    save_objectives(folder / "model", kept)
    return {name: objective.state for name, objective in kept.items()}


@pytest.mark.parametrize("objective", ["joint", "contexts"])
def test_targets_of_the_model_to_continue_from_are_kept(tmp_path: Path, objective: str) -> None:
    states = write_objectives(tmp_path / "first", "contexts", "descriptors")
    task = build_task(tmp_path, model=str(tmp_path / "first" / "model"), objective=objective)
    assert get_states(task) == states


def test_what_the_model_has_not_learned_comes_from_the_corpus(tmp_path: Path) -> None:
    states = write_objectives(tmp_path / "first", "contexts")
    task = build_task(tmp_path, model=str(tmp_path / "first" / "model"))
    assert list(get_states(task)) == ["contexts", "descriptors"]
    assert get_states(task)["contexts"] == states["contexts"]
    assert list(get_states(task)["descriptors"]) == DESCRIPTORS


def test_a_model_without_targets_starts_with_those_of_the_corpus_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        task = build_task(tmp_path, model=str(model))
    assert "its heads start untrained" in caplog.text
    assert get_states(task) == get_states(build_task(tmp_path))


@pytest.mark.parametrize("objective", ["joint", "descriptors", "sequential"])
def test_a_corpus_without_descriptors_is_refused_where_they_are_to_be_learned(
    tmp_path: Path, objective: Any
) -> None:
    write_pretraining_corpus(tmp_path / "corpus", descriptors=None)
    with pytest.raises(ValueError, match=r"--molecule-descriptors rdkit_2d.*--objective contexts"):
        build_task(tmp_path, objective=objective)
    # a run has only what it learns
    assert list(build_task(tmp_path, objective="contexts").objectives) == ["contexts"]


def test_a_corpus_without_the_descriptors_of_the_model_is_refused(tmp_path: Path) -> None:
    write_objectives(tmp_path / "first", "contexts", "descriptors")
    corpus = write_pretraining_corpus(tmp_path / "other", descriptors=["MolWt"])
    options = {"corpus": str(corpus), "model": str(tmp_path / "first" / "model")}
    with pytest.raises(ValueError, match=r"MolLogP.*--molecule-descriptors rdkit_2d"):
        build_task(tmp_path, **options)
    assert list(build_task(tmp_path, objective="contexts", **options).objectives)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valid_fraction": 1e-6}, r"corpus.*valid part.*--valid-fraction 1e-06.*Choose"),
        ({"valid_fraction": 1 - 1e-6}, r"corpus.*train part.*--valid-fraction.*Choose"),
        ({"valid_fraction": 1e-6, "streaming": True}, r"valid part.*--valid-fraction"),
        ({"valid_fraction": 1 - 1e-6, "streaming": True}, r"train part.*--valid-fraction"),
        ({"min_context_count": 10_000}, r"No atom context occurs 10000 times"),
    ],
)
def test_a_part_without_molecules_or_contexts_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_task(tmp_path, **options)


@pytest.mark.slow
def test_a_pretraining_without_some_pairs_is_finetuned_without_them(tmp_path: Path) -> None:
    fewer = {"pair_relations": ["neighborhood", "distance"], "pair_terms": ["keys"]}
    config = json.dumps(ARCHITECTURE | fewer)
    run_pretraining(build_pretraining_arguments(tmp_path, model_config=config, num_train_epochs=1))
    (tmp_path / "finetuned").mkdir()
    arguments = build_tiny_arguments(
        tmp_path / "finetuned", model=str(tmp_path / "run"), num_train_epochs=1
    )
    run_finetuning(arguments)
    model, _ = load_predictor(arguments.output_dir)
    assert {name: getattr(model.config, name) for name in fewer} == fewer
    assert model.rmat.layers[0].self_attention.value_pairs is None
