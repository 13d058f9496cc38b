"""The data folder, one thread, and the tables at the end of a run."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import format_tables, one_thread

TABLES = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data", default="../shared/data", help="folder with the benchmarks' data")


@pytest.fixture(scope="session")
def data_dir(pytestconfig: pytest.Config) -> Path:
    return Path(pytestconfig.getoption("--data"))


@pytest.fixture(autouse=True, scope="session")
def single_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def keep_rows(pytestconfig: pytest.Config, benchmark: Any) -> Iterator[None]:
    yield
    if "rows" in benchmark.extra_info:
        pytestconfig.stash.setdefault(TABLES, []).append(benchmark.extra_info)


def describe_cpu() -> str:
    fields = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    # decides how fast bf16 is
    matrix_unit = ", AMX" if "amx_bf16" in fields.get("flags", "").split() else ""
    return (
        f"{fields.get('model name')} (family {fields.get('cpu family')}, model {fields['model']}"
        f"{matrix_unit})"
    )


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Keep what decides the speed; the name of the machine is nobody's business."""
    machine_info.clear()
    machine_info.update(
        cpu=describe_cpu(),
        cores=os.cpu_count(),
        torch=torch.__version__,
        allocator="tuned" if "MALLOC_TOP_PAD_" in os.environ else "default",
    )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in format_tables(config.stash.get(TABLES, [])):
        terminalreporter.write_line(line)
