"""Training steps and inference against the plain model, by the molecule."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from measuring import (
    Predictor,
    build_batches,
    build_pair,
    build_plain_batches,
    check_equal,
    count_molecules,
    describe_speed,
    load_features,
    pick_evenly,
    report,
    take_turns,
)

pytestmark = pytest.mark.benchmark


class Case(NamedTuple):
    data_set: str
    size: str
    form: str
    num_batches: int
    num_groups: int
    rounds: dict[str, int]


ROUNDS = {"train": 3, "inference": 6}
CASES = [
    Case("drug-like", "small", "paper", num_batches=6, num_groups=6, rounds=ROUNDS),
    Case("drug-like", "small", "reference", num_batches=6, num_groups=6, rounds=ROUNDS),
    Case("drug-like", "published", "reference", num_batches=1, num_groups=1, rounds=ROUNDS),
    # its largest molecules decide: all groups
    Case(
        "BBBP", "small", "paper", num_batches=3, num_groups=31, rounds={"train": 2, "inference": 3}
    ),
]


@pytest.mark.parametrize("task", ["train", "inference"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case[:3]))
def test_speed(benchmark: Any, data_dir: Path, case: Case, task: str) -> None:
    features = load_features(data_dir, case.data_set)
    random = pick_evenly(build_batches(features, grouped=False), case.num_batches)
    groups = pick_evenly(build_batches(features, grouped=True), case.num_groups)
    plain, ours = build_pair(case.size, case.form)
    dense = build_plain_batches(ours, random)
    random_difference = check_equal(plain, ours, random[0], task=task)
    group_difference = check_equal(plain, ours, groups[0], task="inference")
    half = Predictor(ours.model, precision="bf16")

    variants = {
        "plain": (plain, dense, 0.0),
        "same batches, float32": (ours, random, random_difference),
        "length groups, float32": (ours, groups, group_difference),
        "length groups, bf16": (half, groups, None),
    }
    functions = {
        name: partial(predictor.run, batches, task=task)
        for name, (predictor, batches, _) in variants.items()
    }
    seconds = take_turns(benchmark, functions, rounds=case.rounds[task])
    rows = []
    for name, (_, batches, difference) in list(variants.items())[1:]:
        counts = (count_molecules(random), count_molecules(batches))
        rows.append(
            {
                "molecules": case.data_set,
                "model": f"{case.size}, {case.form}",
                "task": task,
                "ours": name,
                **describe_speed(seconds["plain"], seconds[name], counts=counts),
                "largest difference": "see bf16" if difference is None else f"{difference:.0e}",
            }
        )
    report(benchmark, "Speed", rows)
