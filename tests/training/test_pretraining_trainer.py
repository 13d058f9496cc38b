import multiprocessing
from collections import Counter
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import Descriptors
from tiny import TINY_ARCHITECTURE, TINY_SMILES
from tiny_pretraining import DESCRIPTORS, build_pretraining_arguments
from torch.utils.data import DataLoader
from transformers.trainer_utils import set_seed
from transformers.training_args import TrainingArguments

from rmat_hf.data.stored_features import (
    build_features_column,
    expand_features,
    pack_dataset,
    pack_features,
)
from rmat_hf.model.configuration_rmat import MASK_COLUMN, RMatConfig
from rmat_hf.model.modeling_rmat import RMatForPreTraining
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives import OBJECTIVES
from rmat_hf.training.objectives.objective import Objective
from rmat_hf.training.pretraining import PretrainingTask, build_pretraining_task
from rmat_hf.training.pretraining_arguments import PretrainingArguments, build_pretraining_config
from rmat_hf.training.pretraining_trainer import (
    CorpusBatches,
    CorpusBatchSampler,
    PretrainingBatch,
    PretrainingTrainer,
    RMatDataCollatorForPreTraining,
    StreamedBatches,
    form_batches,
    pack_stream,
)

LIMITS = {"batch_size": 8, "max_pairs": 1500}
ORDER = {"multiple": 1, "seed": 42}


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainingTask:
    """108 molecules of 2 to 18 heavy atoms, some of them held out."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return build_pretraining_task(build_pretraining_arguments(tmp_path))


class RecordingCollator(RMatDataCollatorForPreTraining):
    """Notes down the batches it is given."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.batches: list[PretrainingBatch] = []

    def __call__(self, batches: list[PretrainingBatch]) -> dict[str, torch.Tensor]:
        self.batches += batches
        return super().__call__(batches)


def build_trainer(folder: Path, task: PretrainingTask, **options: Any) -> PretrainingTrainer:
    """Contexts and descriptors at once, logged at every step."""
    set_seed(0)
    fields: dict[str, Any] = {
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "remove_unused_columns": False,
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    arguments = build_pretraining_arguments(folder, masked_distances="hidden")
    collator = RecordingCollator(task.objectives, processor=task.processor, arguments=arguments)
    heads = {objective.head: objective.describe_head() for objective in task.objectives.values()}
    return PretrainingTrainer(
        model=RMatForPreTraining(build_pretraining_config(arguments, heads)),
        args=TrainingArguments(output_dir=str(folder / "work"), **{**fields, **options}),
        data_collator=collator,
        train_dataset=CorpusBatches(task.train, **ORDER, **LIMITS),
        eval_dataset=CorpusBatches(task.valid, **ORDER, **LIMITS),
        objectives=task.objectives,
    )


def test_every_molecule_is_seen_once_an_epoch_in_batches_within_the_limits(
    tmp_path: Path, task: PretrainingTask
) -> None:
    trainer = build_trainer(tmp_path, task)
    trainer.train()
    num_nodes = dict(zip(pack_dataset(task.train), task.train["num_nodes"][:], strict=True))
    orders = []
    for epoch in (0, 1):
        batches = [batch for batch in trainer.data_collator.batches if batch.epoch == epoch]
        seen = [molecule for batch in batches for molecule in batch.features]
        assert sorted(seen) == sorted(num_nodes)
        orders.append(seen)
        for batch in batches:
            sizes = [num_nodes[molecule] for molecule in batch.features]
            assert len(sizes) <= LIMITS["batch_size"]
            assert max(sizes) ** 2 * len(sizes) <= LIMITS["max_pairs"]
            assert max(sizes) - min(sizes) <= 6
    assert orders[0] != orders[1]
    assert trainer.state.global_step == len(trainer.data_collator.batches)
    assert trainer.state.epoch == 2


@pytest.mark.slow
@pytest.mark.parametrize("gradient_accumulation_steps", [1, 3])
def test_the_log_has_both_losses_and_the_speed_and_they_add_up(
    tmp_path: Path, task: PretrainingTask, gradient_accumulation_steps: int
) -> None:
    options = {"gradient_accumulation_steps": gradient_accumulation_steps, "num_train_epochs": 3}
    trainer = build_trainer(tmp_path, task, logging_steps=5, **options)
    trainer.train()
    num_batches = len(trainer.data_collator.batches)
    assert trainer.state.global_step == 3 * -(-num_batches // (3 * gradient_accumulation_steps))
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == trainer.state.global_step // 5
    for row in rows:
        assert row["context_loss"] + row["descriptor_loss"] == pytest.approx(
            row["loss"], abs=2e-3 if gradient_accumulation_steps == 1 else 0.5
        )
        assert row["molecules_per_second"] > 0


def test_an_evaluation_gives_the_metrics_of_all_molecules_held_out_and_repeats_itself(
    tmp_path: Path, task: PretrainingTask
) -> None:
    trainer = build_trainer(tmp_path, task)
    metrics = trainer.evaluate()
    batches = trainer.data_collator.batches
    assert sorted(molecule for batch in batches for molecule in batch.features) == sorted(
        pack_dataset(task.valid)
    )
    # whatever the batches are
    collate = trainer.data_collator
    expected: dict[str, Any] = {}
    for objective in task.objectives.values():
        sums = torch.zeros(())
        for molecule in pack_dataset(task.valid):
            inputs = collate([PretrainingBatch(0, [molecule])])
            with torch.no_grad():
                logits = trainer.model.eval()(**inputs).logits[objective.head]
            labels = inputs[f"{objective.head}_labels"]
            sums = sums + objective.compute_sums(logits, labels=labels)
        expected |= objective.compute_metrics(sums)
    expected["loss"] = expected["context_loss"] + expected["descriptor_loss"]
    for name, value in expected.items():
        if isinstance(value, float):
            assert metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-5)
    assert set(trainer.last_report["worst_descriptors"]) <= set(DESCRIPTORS)
    assert metrics["eval_num_centers"] == expected["num_centers"]

    trainer.train()
    trained = trainer.evaluate()
    assert trained["eval_num_centers"] == metrics["eval_num_centers"]
    assert trained == {**trainer.evaluate(), **_get_times(trained)}


def _get_times(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "runtime" in name or "per" in name}


@pytest.mark.slow
def test_an_evaluation_within_the_training_leaves_the_training_as_it_is(
    tmp_path: Path, task: PretrainingTask
) -> None:
    plain = build_trainer(tmp_path, task)
    plain.train()
    scored = build_trainer(tmp_path, task, eval_strategy="steps", eval_steps=3)
    scored.train()
    assert any("eval_loss" in row for row in scored.state.log_history)
    weights = scored.model.state_dict()
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weights[name], weight), name


# Batches

SIZES = np.random.default_rng(0).integers(2, 60, size=403)
GROUPS = {"batch_size": 16, "max_pairs": 5000}


def build_molecule(idx: int) -> bytes:
    """Return the features of a molecule that is no other's, and of one atom whatever its size."""
    atom = PROCESSOR.featurize_compactly("C")
    descriptors = np.full(3, idx, dtype=np.float32)
    return pack_features(atom._replace(molecule_descriptors=descriptors))


@pytest.fixture(scope="module")
def table() -> datasets.Dataset:
    features = build_features_column([build_molecule(idx) for idx in range(len(SIZES))])
    return datasets.Dataset.from_dict({"features": features, "num_nodes": SIZES.tolist()})


def stream(table: datasets.Dataset) -> datasets.IterableDataset:
    return pack_stream(table.to_iterable_dataset(num_shards=4))


def take_first(batches: list[PretrainingBatch]) -> PretrainingBatch:
    return batches[0]


def read_epoch(stream: StreamedBatches, num_workers: int, rank: int = 0) -> list[PretrainingBatch]:
    """The share of a process, as accelerate's IterableDatasetShard deals batches out."""
    loader = DataLoader(stream, batch_size=1, collate_fn=take_first, num_workers=num_workers)
    return list(takewhile(lambda batch: batch.epoch == 0, loader))[rank :: stream.multiple]


@given(
    st.lists(st.integers(2, 90), min_size=4, max_size=80),
    st.integers(1, 20),
    st.sampled_from([1, 2000, 2**20]),
    st.integers(1, 4),
)
def test_every_molecule_is_in_one_batch_within_the_limits(
    num_nodes: list[int], batch_size: int, max_pairs: int, multiple: int
) -> None:
    limits = {"batch_size": batch_size, "max_pairs": max_pairs}
    limits["generator"] = np.random.default_rng(0)
    batches = form_batches(num_nodes, multiple=multiple, **limits)
    rows = [row for batch in batches for row in batch.tolist()]
    assert sorted(rows) == list(range(len(num_nodes)))
    assert len(batches) % multiple == 0
    num_formed = len(form_batches(num_nodes, multiple=1, **limits))
    # else the smallest come together whatever the limits
    if -(-num_formed // multiple) * multiple <= len(num_nodes):
        for batch in batches:
            largest = max(num_nodes[row] for row in batch)
            assert 1 <= len(batch) <= batch_size
            assert len(batch) == 1 or len(batch) * largest**2 <= max_pairs


def test_processes_that_take_turns_get_batches_of_similar_sizes() -> None:
    batches = form_batches(SIZES, multiple=2, generator=np.random.default_rng(0), **GROUPS)
    spans = [
        SIZES[np.concatenate(batches[start : start + 2])] for start in range(0, len(batches), 2)
    ]
    assert max(span.max() - span.min() for span in spans) < 12
    first_sizes = [int(span.max()) for span in spans]
    assert sorted(first_sizes) not in (first_sizes, first_sizes[::-1])


def test_epochs_differ_in_order_and_company_and_not_in_number(table: datasets.Dataset) -> None:
    corpus = CorpusBatches(table, multiple=1, seed=0, **GROUPS)
    sampler = CorpusBatchSampler(corpus)
    first, again = list(sampler), list(sampler)
    assert first == again
    assert len(corpus) == len(table)
    # a key brings the molecules of its rows
    epoch, rows = first[0]
    assert corpus[first[0]] == (epoch, [build_molecule(row) for row in rows], {})
    sampler.set_epoch(1)
    second = list(sampler)
    assert len(first) == len(second) == len(sampler)
    assert {epoch for epoch, _ in second} == {1}
    companies = [{frozenset(rows) for _, rows in keys if len(rows) > 2} for keys in (first, second)]
    assert len(companies[0] & companies[1]) < len(companies[0]) / 4
    other_seed = CorpusBatchSampler(CorpusBatches(table, multiple=1, seed=1, **GROUPS))
    assert list(other_seed) != first


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("buffer_size", [50, 1000])
def test_a_stream_gives_every_molecule_once_to_one_process(
    table: datasets.Dataset, num_workers: int, num_processes: int, buffer_size: int
) -> None:
    batches = StreamedBatches(
        stream(table),
        multiple=num_processes,
        seed=0,
        buffer_size=buffer_size,
        **GROUPS,
    )
    shares = [read_epoch(batches, num_workers, rank) for rank in range(num_processes)]
    assert len({len(share) for share in shares}) == 1
    molecules = Counter(m for share in shares for batch in share for m in batch.features)
    assert molecules == Counter(pack_dataset(table))


def test_epochs_of_a_stream_differ_and_repeat(table: datasets.Dataset) -> None:
    def build(**options: int) -> StreamedBatches:
        return StreamedBatches(
            stream(table), multiple=1, seed=0, buffer_size=100, **GROUPS, **options
        )

    batches, resumed = build(), build()
    first, second = list(batches.iterate_epoch(0)), list(batches.iterate_epoch(1))
    assert {batch.epoch for batch in second} == {1}
    assert [batch.features for batch in second] != [batch.features for batch in first]
    assert list(resumed.iterate_epoch(1)) == second
    # Trainer drops what a resumed run has behind it: those batches need no molecules
    both = list(takewhile(lambda batch: batch.epoch < 2, batches))
    assert both == [*first, *second]
    skipped = list(takewhile(lambda batch: batch.epoch < 2, build(num_skipped=len(first) + 2)))
    assert [len(batch.features) for batch in skipped[: len(first) + 2]] == [0] * (len(first) + 2)
    assert skipped[len(first) + 2 :] == both[len(first) + 2 :]


def test_a_worker_in_another_epoch_does_not_change_the_order(table: datasets.Dataset) -> None:
    """Workers skip to where a run was interrupted, each at its own speed."""
    batches = StreamedBatches(stream(table), multiple=1, seed=0, buffer_size=100, **GROUPS)
    undisturbed = list(batches.iterate_epoch(0))
    worker = multiprocessing.get_context("fork").Process(
        target=partial(next, batches.iterate_epoch(2))
    )
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert list(batches.iterate_epoch(0)) == undisturbed


def test_a_stream_shorter_than_the_number_of_processes_is_refused() -> None:
    table = datasets.Dataset.from_dict({"features": [b"a"], "num_nodes": [3]})
    batches = StreamedBatches(table.to_iterable_dataset(), multiple=2, seed=0, **GROUPS)
    with pytest.raises(ValueError, match="1 molecules are too few for 2"):
        list(batches)


# Collator

NAMES = ["MolWt", "TPSA", "MolLogP"]
CORPUS = [*TINY_SMILES, "CC(=O)Oc1ccccc1C(=O)O", "OCCN1CCCC1", "CCCCCC", "c1ccncc1Br"]
PROCESSOR = RMatProcessor(geometry="bounds", molecule_descriptors=["TPSA", *NAMES[:1], "MolLogP"])


@pytest.fixture(scope="module")
def corpus() -> list[bytes]:
    return [pack_features(PROCESSOR.featurize_compactly(smiles)) for smiles in CORPUS]


@pytest.fixture(scope="module")
def objectives(corpus: list[bytes]) -> dict[str, Objective]:
    """Both, fitted to the corpus; the descriptors in another order than there."""
    arguments = PretrainingArguments(corpus="c", output_dir="o", min_context_count=1)
    fitted = {
        name: OBJECTIVES[name].fit(corpus, processor=PROCESSOR, arguments=arguments)
        for name in ("contexts", "descriptors")
    }
    state = fitted["descriptors"].state
    return fitted | {
        "descriptors": OBJECTIVES["descriptors"]({name: state[name] for name in NAMES})
    }


def collate(
    corpus: list[bytes],
    objectives: dict[str, Objective],
    *,
    epoch: int = 0,
    learned: str = "joint",
    masked_distances: str = "visible",
) -> dict[str, torch.Tensor]:
    """Return a batch of the first stage of an objective, of which a third is masked."""
    options = {"mask_ratio": 0.3, "masked_distances": masked_distances, "objective": learned}
    arguments = PretrainingArguments(corpus="c", output_dir="o", **options)
    names = next(iter(arguments.stages.values()))
    collator = RMatDataCollatorForPreTraining(
        {name: objectives[name] for name in names}, processor=PROCESSOR, arguments=arguments
    )
    return collator([PretrainingBatch(epoch, corpus)])


def test_descriptors_alone_mask_nothing(
    corpus: list[bytes], objectives: dict[str, Objective]
) -> None:
    batch = collate(corpus, objectives, learned="descriptors")
    assert "context_labels" not in batch
    whole = expand_features(corpus)
    del whole["molecule_descriptors"]
    for name, array in whole.items():
        np.testing.assert_array_equal(batch[name].numpy(), array)
    assert batch["descriptor_labels"].shape == (len(CORPUS), 3)
    # the columns follow the names of the targets, not those of the corpus
    weights = [Descriptors.MolWt(Chem.MolFromSmiles(smiles)) for smiles in CORPUS]
    assert batch["descriptor_labels"][:, 0].argsort().tolist() == np.argsort(weights).tolist()


def test_jointly_a_molecule_is_asked_for_contexts_or_descriptors_anew_in_every_epoch(
    corpus: list[bytes], objectives: dict[str, Objective]
) -> None:
    seen = set()
    for epoch in range(8):
        batch = collate(corpus, objectives, epoch=epoch)
        has_contexts = (batch["context_labels"] >= 0).any(1)
        is_masked = batch["node_features"][..., MASK_COLUMN].any(1)
        has_descriptors = ~batch["descriptor_labels"].isnan().any(1)
        assert torch.equal(has_contexts, ~has_descriptors)
        assert torch.equal(has_contexts, is_masked)
        seen.add(tuple(has_contexts.tolist()))
    assert len(seen) > 1


def test_masks_follow_from_epoch_and_molecule(
    corpus: list[bytes], objectives: dict[str, Objective]
) -> None:
    batch, again = collate(corpus, objectives), collate(corpus[::-1], objectives)
    for name, values in batch.items():
        torch.testing.assert_close(again[name].flip(0), values, equal_nan=True, rtol=0, atol=0)


def test_distances_are_hidden_only_if_asked(
    corpus: list[bytes], objectives: dict[str, Objective]
) -> None:
    visible = collate(corpus, objectives)
    hidden = collate(corpus, objectives, masked_distances="hidden")
    before, distances = (batch.pop("interatomic_distances") for batch in (visible, hidden))
    assert torch.equal(before, torch.from_numpy(expand_features(corpus)["interatomic_distances"]))
    assert (distances != before).any()
    for name, values in visible.items():
        torch.testing.assert_close(hidden[name], values, equal_nan=True, rtol=0, atol=0)


def test_model_learns_from_the_batch(corpus: list[bytes], objectives: dict[str, Objective]) -> None:
    heads = {objective.head: objective.describe_head() for objective in objectives.values()}
    model = RMatForPreTraining(RMatConfig(**TINY_ARCHITECTURE, pretraining_heads=heads))
    output = model(**collate(corpus, objectives))
    assert output.context_loss.item() == pytest.approx(np.log(heads["context"]["size"]), rel=0.5)
    assert torch.equal(output.loss, output.context_loss + output.descriptor_loss)
    # a batch that a resumed run skips
    assert collate([], objectives) == {}
