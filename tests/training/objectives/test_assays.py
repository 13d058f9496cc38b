"""Sparse labels of assays: classes, values and bounds, each assay with the same part."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rmat_hf.errors import UserError
from rmat_hf.model.losses_rmat import LOSSES
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.assays import AssayObjective
from rmat_hf.training.objectives.objective import ObjectiveBatch

PROCESSOR = RMatProcessor(geometry="2d")
# of four molecules: assay `a` has values and a bound, `b` both classes, `c` always the same value
COLUMNS: dict[str, list[Any]] = {
    "label_assays": [["a", "b"], ["a", "b"], [], ["a", "b", "c"]],
    "label_kinds": [["=", "class"], ["=", "class"], [], ["<", "class", "="]],
    "label_values": [[4.0, 1.0], [8.0, 0.0], [], [5.0, 1.0, 2.0]],
}
NAN = math.nan


def fit(min_assay_labels: int = 1) -> AssayObjective:
    arguments = SimpleNamespace(min_assay_labels=min_assay_labels)
    return AssayObjective.fit([], processor=PROCESSOR, arguments=arguments, columns=COLUMNS)


def prepare(is_asked: list[bool]) -> np.ndarray:
    batch = ObjectiveBatch([], {}, np.array(is_asked), (0,), PROCESSOR, None, COLUMNS)
    return fit().prepare(batch)[0]


def test_exact_values_decide_the_scale_and_what_does_not_vary_is_left_out() -> None:
    assert fit().state == {"classes": ["b"], "values": {"a": [6.0, 2.0]}}
    assert fit(3).state == {"classes": ["b"], "values": {}}
    with pytest.raises(UserError, match="--min-assay-labels"):
        fit(4)


def test_labels_are_values_and_kinds_of_those_who_are_asked() -> None:
    labels = prepare([True, False, True, True])
    # class of b, value of a, kind of b, kind of a
    expected = [[1, -1, 0, 1], [NAN] * 4, [NAN] * 4, [1, -0.5, 0, 2]]
    np.testing.assert_array_equal(labels, expected)


def test_a_bound_costs_what_lies_beyond_it_and_an_assay_counts_once() -> None:
    nothing = NAN
    # by column: classes, a value, an upper bound, a lower bound
    values = [[1.0, 2.0, 1.0, 1.0], [0.0, nothing, 1.0, 1.0], [nothing] * 4]
    kinds = [[0.0, 1.0, 2.0, 3.0]] * 3
    labels = torch.cat([torch.tensor(values), torch.tensor(kinds)], dim=-1)
    logits = torch.tensor([[0.0, 5.0, 3.0, 3.0], [0.0, 9.0, -2.0, -2.0], [7.0] * 4])
    logits.requires_grad_()
    loss = LOSSES["assays"](logits, labels)
    by_assay = [math.log(2), 3.0**2, (2.0**2 + 0) / 2, (0 + 3.0**2) / 2]
    assert loss.item() == pytest.approx(sum(by_assay) / 4)
    loss.backward()
    # by row and assay: no label and no broken bound, no pull
    pulled = [[True, True, True, False], [True, False, False, True], [False] * 4]
    assert (logits.grad != 0).tolist() == pulled
    nobody = LOSSES["assays"](logits, torch.full_like(labels, nothing))
    assert nobody.item() == 0
    nobody.backward()


def test_metrics_are_the_loss_of_all_batches_and_r2_of_exact_values() -> None:
    objective = fit()
    labels = torch.from_numpy(prepare([True] * 4))
    logits = torch.tensor([[0.0, -1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    parts = [slice(0, 1), slice(1, 4)]
    sums = [objective.compute_sums(logits[part], labels=labels[part]) for part in parts]
    metrics = objective.compute_metrics(torch.stack(sums).sum(0))
    assert metrics["assay_loss"] == pytest.approx(LOSSES["assays"](logits, labels).item())
    assert metrics["assay_class_error"] == pytest.approx(math.log(2))
    # -1 and 1, predicted as -1 and 0; the bound at -0.5 is broken by 0.5
    assert metrics["assay_value_error"] == pytest.approx((0 + 1 + 0.25) / 3)
    assert metrics["assay_value_r2"] == pytest.approx(1 - 1 / 2)
    assert (metrics["num_assays"], metrics["num_assay_labels"]) == (2, 6)
    assert objective.compute_metrics(torch.zeros(6, 2)) == {}
