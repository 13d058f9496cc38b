"""Cost of a molecule against its number of nodes, as numbers and as a plot."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_memory import build_chains
from matplotlib.figure import Figure
from measuring import (
    build_pair,
    build_plain_batches,
    check_equal,
    report,
    take_turns,
)

pytestmark = pytest.mark.benchmark

NUM_MOLECULES = 8
ROUNDS = 3
SIZES = (8, 16, 32, 64, 128, 256)
# the plain model takes gigabytes and minutes beyond
MAX_PLAIN_SIZE = 64
PLOT = Path(__file__).parent / "results" / "cost_of_size.png"

Costs = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def costs() -> Costs:
    """Seconds per molecule, by curve and number of nodes."""
    return {}


@pytest.mark.parametrize("task", ["train", "inference"])
@pytest.mark.parametrize("num_nodes", SIZES)
def test_cost_of_size(benchmark: Any, costs: Costs, num_nodes: int, task: str) -> None:
    plain, ours = build_pair("small", "paper")
    batch = [build_chains(num_nodes, num_molecules=NUM_MOLECULES)]
    functions = {f"ours, {task}": partial(ours.run, batch, task=task)}
    if num_nodes <= MAX_PLAIN_SIZE:
        check_equal(plain, ours, batch[0], task=task)
        dense = build_plain_batches(ours, batch)
        functions = {f"plain, {task}": partial(plain.run, dense, task=task)} | functions
    functions[f"ours, {task}"]()
    for name, seconds in take_turns(benchmark, functions, rounds=ROUNDS).items():
        costs.setdefault(name, {})[num_nodes] = float(np.median(seconds)) / NUM_MOLECULES


def fit_exponent(curve: dict[int, float], *, lowest: int, highest: int) -> str:
    points = [(n, cost) for n, cost in curve.items() if lowest <= n <= highest]
    if len(points) < 2:
        return ""
    return f"{np.polyfit(*np.log(np.array(points)).T, deg=1)[0]:.2f}"


def draw_curves(costs: Costs) -> None:
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for name, curve in costs.items():
        task, style = name.split(", ")[1], "--" if name.startswith("plain") else "-"
        exponent = fit_exponent(curve, lowest=32, highest=max(SIZES))
        axes.loglog(
            list(curve),
            [cost * 1e3 for cost in curve.values()],
            style,
            color="tab:blue" if task == "train" else "tab:orange",
            marker="o",
            label=f"{name}: n^{exponent} from 32 nodes on",
        )
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.minorticks_off()
    axes.set_xlabel("nodes of the molecule (heavy atoms + 1)")
    axes.set_ylabel("milliseconds per molecule")
    axes.set_title("Small model, float32, one thread, batches of 8 molecules of one size")
    axes.grid(alpha=0.3)
    axes.legend()
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=120, metadata={"Software": None})


def test_plot_of_the_cost(benchmark: Any, costs: Costs) -> None:
    if not costs:
        pytest.skip("run the whole file: the plot needs the costs of all sizes")
    rows = []
    for name, curve in costs.items():
        cells = {
            f"n = {size}": f"{curve[size] * 1e3:.1f}" if size in curve else "" for size in SIZES
        }
        rows.append(
            {
                "ms per molecule": name,
                **cells,
                "exponent up to 32": fit_exponent(curve, lowest=8, highest=32),
                "exponent from 32 on": fit_exponent(curve, lowest=32, highest=256),
            }
        )
    benchmark.pedantic(draw_curves, args=(costs,), rounds=1)
    report(benchmark, "Cost of the number of nodes", rows)
