"""The denominator of the loss, the rate of the head, the moving average of the weights."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from rdkit import Chem
from safetensors.torch import load_file
from tiny import TINY_ARCHITECTURE, TINY_SMILES
from tiny_trainer import PROCESSOR, build_model, build_rows, build_trainer
from torch import nn
from transformers.trainer import Trainer
from transformers.trainer_callback import TrainerCallback
from transformers.training_args import TrainingArguments

from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.stored_features import build_features_column
from rmat_hf.data.training_table import featurize_dataset
from rmat_hf.errors import UserError
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.losses_rmat import compute_loss_denominator
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification, RMatForTokenClassification
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.recipe import RMatTrainingArguments, compute_label_scaling
from rmat_hf.training.trainer import RMatDataCollator, RMatTrainer, WeightAverage

NAN = math.nan


def build_config(problem_type: str, **options: Any) -> RMatConfig:
    return RMatConfig(**TINY_ARCHITECTURE, problem_type=problem_type, **options)


@pytest.mark.parametrize(
    ("problem_type", "loss_weights"),
    [
        ("regression", None),
        ("regression", [1.0, 3.0]),
        ("multi_label_classification", None),
        ("multi_label_classification", [2.0, 0.5]),
        ("single_label_classification", None),
        ("single_label_classification", [2.0, 0.5]),
    ],
)
def test_the_weighted_means_of_two_halves_are_the_mean_of_the_whole(
    problem_type: str, loss_weights: list[float] | None
) -> None:
    config = build_config(problem_type, num_labels=2, loss_weights=loss_weights)
    model = RMatForSequenceClassification(config)
    torch.manual_seed(0)
    output = torch.randn(8, 2)
    labels = torch.randint(0, 2, (8, 2)).float()
    labels[[0, 1, 4], 0] = NAN
    if problem_type == "single_label_classification":
        labels = labels[:, :1]
    halves = [(output[:3], labels[:3]), (output[3:], labels[3:])]
    weights = [compute_loss_denominator(part, config) for _, part in halves]
    losses = [model.compute_loss(*half) for half in halves]
    mean = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    torch.testing.assert_close(mean, model.compute_loss(output, labels), rtol=1e-5, atol=1e-6)


def build_trainer_with_head(folder: Path, head_learning_rate: float | None) -> Any:
    return build_trainer(
        folder,
        head_learning_rate=head_learning_rate,
        train_dataset=build_rows(8),
        learning_rate=1e-3,
        weight_decay=0.1,
        num_train_epochs=2,
        warmup_steps=2,
        lr_scheduler_type="linear",
    )


def list_rates(trainer: Any) -> dict[str, tuple[float, float]]:
    """Return peak learning rate and weight decay by name of the parameter."""
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }


def test_the_head_alone_has_its_learning_rate(tmp_path: Path) -> None:
    trainer = build_trainer_with_head(tmp_path, 0.02)
    own = list_rates(trainer)
    common = list_rates(build_trainer_with_head(tmp_path, None))
    assert own.keys() == common.keys() == {name for name, _ in trainer.model.named_parameters()}
    for name, (rate, decay) in own.items():
        assert rate == (0.02 if name.startswith("classifier.") else 1e-3)
        assert decay == common[name][1]
    assert {rate for rate, _ in common.values()} == {1e-3}
    assert {decay for _, decay in own.values()} == {0.0, 0.1}


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(inputs).square().sum().backward()
    optimizer.step()


def build_linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_the_average_follows_its_recursion_and_the_weights_do_not_notice(
    optimizer_class: Any,
) -> None:
    model, alone = build_linear(), build_linear()
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    average = WeightAverage(optimizer, decay=0.4)
    expected = None
    for step in range(1, 9):
        average.show(is_average=False)
        take_step(model, optimizer, step)
        if step == 1:
            alone_optimizer = optimizer_class(alone.parameters(), lr=0.1)
        take_step(alone, alone_optimizer, step)
        weight = alone.weight.detach().clone()
        decay = min(0.4, (1 + step) / (10 + step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
        average.show(is_average=True)
        average.show(is_average=True)
        torch.testing.assert_close(model.weight, expected)
        if step > 1:
            assert not torch.equal(model.weight, alone.weight)
    average.show(is_average=False)
    assert torch.equal(model.weight, alone.weight)
    assert torch.equal(model.bias, alone.bias)


@pytest.mark.parametrize("is_average_shown", [True, False])
def test_a_restored_optimizer_goes_on_as_if_nothing_had_happened(is_average_shown: bool) -> None:
    model = build_linear()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    average = WeightAverage(optimizer, decay=0.9)
    for step in range(3):
        take_step(model, optimizer, step)
    if is_average_shown:
        average.show(is_average=True)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    restored = nn.Linear(3, 2)
    restored.load_state_dict(saved[0])
    other_optimizer = torch.optim.AdamW(restored.parameters(), lr=0.1)
    other = WeightAverage(other_optimizer, decay=0.9)
    other_optimizer.load_state_dict(saved[1])
    for shown in (average, other):
        shown.show(is_average=False)
    take_step(model, optimizer, 7)
    take_step(restored, other_optimizer, 7)
    assert torch.equal(model.weight, restored.weight)
    for shown in (average, other):
        shown.show(is_average=True)
    assert torch.equal(model.weight, restored.weight)


def test_weights_without_gradient_are_left_as_they_are() -> None:
    model = nn.Sequential(build_linear(), nn.Linear(2, 2))
    model[1].requires_grad_(False)
    frozen = model[1].weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    average = WeightAverage(optimizer, decay=0.9)
    for step in range(2):
        average.show(is_average=False)
        take_step(model, optimizer, step)
        average.show(is_average=True)
    assert torch.equal(model[1].weight, frozen)
    # they can still begin to train: an optimizer takes an empty state for a new one
    model[1].requires_grad_(True)
    average.show(is_average=False)
    take_step(model, optimizer, 2)
    assert not torch.equal(model[1].weight, frozen)


class Recorder(TrainerCallback):
    """Copies a weight after every optimizer step and in every evaluation."""

    def __init__(self) -> None:
        self.trained: list[torch.Tensor] = []
        self.evaluated: list[torch.Tensor] = []

    def on_step_end(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.trained.append(self._copy(model))

    def on_evaluate(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.evaluated.append(self._copy(model))

    @staticmethod
    def _copy(model: nn.Module) -> torch.Tensor:
        return next(model.parameters()).detach().clone()


def train(folder: Path, *, ema_decay: float, **options: Any) -> tuple[Any, Recorder]:
    recorder = Recorder()
    rows = build_rows(16)
    trainer = build_trainer(
        folder,
        ema_decay=ema_decay,
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[recorder],
        learning_rate=1e-2,
        num_train_epochs=3,
        eval_strategy="epoch",
        **options,
    )
    trainer.train()
    return trainer, recorder


def test_training_is_that_without_an_average_and_the_average_is_evaluated_and_kept(
    tmp_path: Path,
) -> None:
    _, plain = train(tmp_path / "plain", ema_decay=0.0, save_strategy="epoch")
    trainer, averaged = train(tmp_path / "averaged", ema_decay=0.9, save_strategy="epoch")
    assert len(plain.trained) == len(averaged.trained) > 3
    for expected, weight in zip(plain.trained, averaged.trained, strict=True):
        assert torch.equal(expected, weight)

    expected = plain.trained[0]
    steps_per_epoch = len(plain.trained) // 3
    for step, weight in enumerate(plain.trained[1:], start=2):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
        if step % steps_per_epoch == 0:
            shown = averaged.evaluated[step // steps_per_epoch - 1]
            torch.testing.assert_close(shown, expected)
            name = next(name for name, _ in trainer.model.named_parameters())
            saved = load_file(tmp_path / "averaged" / f"checkpoint-{step}" / "model.safetensors")
            assert torch.equal(saved[name], shown)
    assert torch.equal(next(trainer.model.parameters()), averaged.evaluated[-1])


def test_the_best_average_is_loaded_and_stays(tmp_path: Path) -> None:
    # "best" is the highest loss here, which is not that of the last epoch
    trainer, recorder = train(
        tmp_path,
        ema_decay=0.9,
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,
    )
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = recorder.evaluated[losses.index(max(losses))]
    assert not torch.equal(best, recorder.evaluated[-1])
    assert torch.equal(next(trainer.model.parameters()), best)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(losses), rel=1e-6)
    assert torch.equal(next(trainer.model.parameters()), best)


# Collator


def featurize(
    processor: RMatProcessor, labels: list[list[float]], smiles: list[str] = TINY_SMILES
) -> datasets.Dataset:
    packed = [outcome.features for outcome in featurize_molecules(smiles, processor)]
    features = build_features_column(packed)
    return datasets.Dataset.from_dict({"features": features, "labels": labels})


@pytest.mark.parametrize("descriptors", [None, ["MolWt", "TPSA"]])
def test_batch_is_the_one_of_the_processor_with_labels(descriptors: list[str] | None) -> None:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=descriptors)
    rows = featurize(processor, [[float(i)] for i in range(len(TINY_SMILES))])
    expected = dict(processor(list(map(Chem.CanonSmiles, TINY_SMILES)), return_tensors="pt"))
    for kind in (None, "numpy", "torch"):
        shown = rows.with_format(kind)
        batch = RMatDataCollator(processor)([shown[i] for i in range(len(rows))])
        labels = batch.pop("labels")
        assert set(batch) == set(expected)
        for name, tensor in expected.items():
            assert batch[name].dtype == tensor.dtype, name
            assert torch.equal(batch[name], tensor), name
        assert labels.tolist() == [[float(i)] for i in range(len(TINY_SMILES))]


def test_rows_without_the_descriptors_of_the_processor_are_refused() -> None:
    rows = featurize(RMatProcessor(geometry="bounds"), [[0.0]], ["C"])
    collator = RMatDataCollator(RMatProcessor(geometry="bounds", molecule_descriptors=["MolWt"]))
    with pytest.raises(ValueError, match="not featurized with the 1 molecule descriptors"):
        collator(list(rows))


def test_missing_labels_stay_nan_in_float32(processor: RMatProcessor) -> None:
    labels = [[0.1, float("nan")], [float("nan"), 2.0], [float("nan")] * 2]
    rows = featurize(processor, labels, ["CCO", "CCN", "C"])
    batch = RMatDataCollator(processor)(list(rows))
    assert batch["labels"].dtype == torch.float32
    np.testing.assert_array_equal(batch["labels"].numpy(), np.array(labels, dtype=np.float32))


@pytest.mark.parametrize("name", ["label", "labels"])
@pytest.mark.parametrize("trainer_class", [Trainer, RMatTrainer])
def test_a_label_has_the_name_that_a_trainer_of_transformers_gives_it(
    trainer_class: type[Trainer], name: str, tmp_path: Path
) -> None:
    table = Dataset.from_dict({"smiles": TINY_SMILES, name: [float(len(it)) for it in TINY_SMILES]})
    rows = table.map(lambda row: PROCESSOR.featurize(row["smiles"])[0])
    batch = RMatDataCollator(PROCESSOR)(list(rows))
    assert batch["labels"].tolist() == table[name][:]
    assert {name, "smiles"} & {*batch} <= {"labels"}
    model = build_model(num_labels=1)
    trainer = build_trainer(
        tmp_path, model=model, trainer_class=trainer_class, train_dataset=rows, eval_dataset=rows
    )
    assert trainer.train().training_loss > 0
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_trainer_says_what_its_rows_and_arguments_lack(tmp_path: Path) -> None:
    table = Dataset.from_dict({"smiles": TINY_SMILES, "label": ["low"] * len(TINY_SMILES)})
    rows = featurize_dataset(table, PROCESSOR)
    with pytest.raises(UserError, match=r"no labels.*label_columns="):
        build_trainer(tmp_path, model=build_model(num_labels=1), train_dataset=rows).train()
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    stock = Trainer(build_model(), arguments, train_dataset=table, processing_class=PROCESSOR)
    with pytest.raises(ValueError, match=r"Featurize first.*processor\.featurize"):
        stock.train()
    with pytest.raises(TypeError, match=r"are TrainingArguments.*RMatTrainingArguments"):
        RMatTrainer(build_model(), TrainingArguments(str(tmp_path)))  # type: ignore[arg-type]  # wrong


# Atoms

ATOM_SMILES = ["OC(=O)c1ccccc1", "CCO", "OCC(O)CO", "N#CC", "CC(C)O", "ClC1CCCC1"] * 2


def build_atom_rows() -> Dataset:
    """Two labels of each atom: its element, and its number of neighbors, which CCO lacks."""
    mols = [Chem.MolFromSmiles(smiles) for smiles in ATOM_SMILES]
    elements = [[float(atom.GetAtomicNum()) for atom in mol.GetAtoms()] for mol in mols]
    degrees: list[Any] = [[float(atom.GetDegree()) for atom in mol.GetAtoms()] for mol in mols]
    degrees[1] = None
    table = Dataset.from_dict({"smiles": ATOM_SMILES, "Z": elements, "degree": degrees})
    return featurize_dataset(table, PROCESSOR, label_columns=["Z", "degree"])


def build_atom_model(rows: Dataset) -> RMatForTokenClassification:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"num_labels": 2, "problem_type": "regression"}
    fields |= {**TINY_ARCHITECTURE, **compute_label_scaling(rows["labels"][:])}
    return RMatForTokenClassification(RMatConfig(**fields))


def test_a_trainer_learns_labels_of_atoms_and_scores_the_known_ones(tmp_path: Path) -> None:
    rows = build_atom_rows()
    model = build_atom_model(rows)
    labels = np.concatenate([np.array(values, dtype=float) for values in rows["labels"]])
    np.testing.assert_allclose(model.config.label_mean, np.nanmean(labels, axis=0))
    trainer = build_trainer(
        tmp_path,
        model=model,
        train_dataset=rows,
        eval_dataset=rows,
        train_sampling_strategy="group_by_length",
        per_device_eval_batch_size=2,
        num_train_epochs=40,
        learning_rate=1e-2,
        eval_strategy="no",
        load_best_model_at_end=False,
    )
    trainer.train()
    metrics = trainer.evaluate()
    model.eval()
    predicted = []
    for row in rows:
        batch = RMatDataCollator(PROCESSOR)([row])
        assert batch["labels"].shape == (1, row["num_nodes"], 2)
        assert batch["labels"][0, 0].isnan().all()
        with torch.no_grad():
            predicted.append(model(**batch).logits[0, 1:].numpy())
    errors = np.concatenate(predicted) - labels
    expected = np.nanmean(np.abs(errors), axis=0).mean()
    assert metrics["eval_mae"] == pytest.approx(expected, rel=1e-4)
    assert metrics["eval_r2"] > 0.9


def test_an_encoder_stays_as_it_is_in_its_frozen_epochs(tmp_path: Path) -> None:
    rows = build_atom_rows()
    for num_frozen, num_changed in ((0, 2), (1, 1), (math.inf, 0)):
        model = build_atom_model(rows)
        states = [copy.deepcopy(model.state_dict())]

        class Recorder(TrainerCallback):
            def on_epoch_end(self, *_: Any, model: Any = None, **__: Any) -> None:
                states.append(copy.deepcopy(model.state_dict()))  # noqa: B023 - used in its turn

        trainer = build_trainer(
            tmp_path,
            model=model,
            train_dataset=rows,
            eval_dataset=rows,
            callbacks=[Recorder()],
            num_frozen_epochs=num_frozen,
            num_train_epochs=2,
            eval_strategy="no",
            load_best_model_at_end=False,
        )
        trainer.train()
        changed = [
            {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
            for before, after in itertools.pairwise(states)
        ]
        assert [("rmat" in names) for names in changed].count(True) == num_changed
        assert all("classifier" in names for names in changed)
        assert "rmat" in changed[1] or num_frozen == math.inf
        assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("part", ["train", "eval", "one of several", "predict"])
def test_rows_of_another_processor_are_refused(tmp_path: Path, part: str) -> None:
    table = datasets.Dataset.from_dict({"smiles": TINY_SMILES, "y": range(len(TINY_SMILES))})
    rows, others = (
        featurize_dataset(table, RMatProcessor(geometry=geometry), label_columns=["y"])
        for geometry in ("bounds", "2d")
    )
    given = {"one of several": {"eval_dataset": {"a": rows, "b": others}}, "predict": {}}
    options = given.get(part, {f"{part}_dataset": others})
    with pytest.raises(UserError, match='geometry is "2d" in one and "bounds" in the other'):
        RMatTrainer(
            build_model(num_labels=1),
            RMatTrainingArguments(str(tmp_path)),
            processing_class=RMatProcessor(geometry="bounds"),
            **{"train_dataset": rows, "eval_dataset": rows, **options},
        ).predict(others)


def test_a_transform_of_rows_is_applied(tmp_path: Path) -> None:
    def shift(rows: dict[str, Any]) -> dict[str, Any]:
        return {**rows, "labels": [[label + 5.0 for label in it] for it in rows["labels"]]}

    rows = build_rows(4)
    trainer = build_trainer(tmp_path, train_dataset=rows)
    found = trainer.predict(rows.with_transform(shift)).label_ids
    np.testing.assert_allclose(found, np.array(rows["labels"][:]) + 5.0, rtol=1e-6)
