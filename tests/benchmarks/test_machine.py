"""Memory is that of the whole process tree, and the machine is described without its name."""

import json
import multiprocessing
import os
import platform
import time

import numpy as np
import pytest
import torch
from machine import MemorySampler, compute_memory_mib, describe_machine

SIZE_MIB = 200
# what the interpreter itself may take or give back meanwhile
TOLERANCE_MIB = 40


def allocate(num_mib: int) -> np.ndarray:
    return np.ones(num_mib * 2**20, dtype=np.uint8)


def hold_memory(num_mib: int) -> None:
    held = allocate(num_mib)
    time.sleep(0.3)
    del held


def test_peak_is_seen_although_the_memory_is_free_again() -> None:
    idle = compute_memory_mib()
    with MemorySampler() as memory:
        held = allocate(SIZE_MIB)
        time.sleep(0.1)
        del held
    assert memory.peak_mib - idle == pytest.approx(SIZE_MIB, abs=TOLERANCE_MIB)
    assert compute_memory_mib() - idle < TOLERANCE_MIB


def test_memory_of_a_child_counts_and_shared_pages_count_once() -> None:
    shared = allocate(SIZE_MIB)
    idle = compute_memory_mib()
    with MemorySampler() as memory:
        process = multiprocessing.get_context("fork").Process(target=hold_memory, args=(SIZE_MIB,))
        process.start()
        process.join()
    assert memory.peak_mib - idle == pytest.approx(SIZE_MIB, abs=TOLERANCE_MIB)
    assert shared.nbytes == SIZE_MIB * 2**20


def test_block_without_a_moment_is_sampled_once() -> None:
    with MemorySampler() as memory:
        pass
    assert memory.peak_mib > 0


def test_machine_is_described_in_json_without_its_name() -> None:
    machine = describe_machine(torch.device("cpu"))
    assert machine["device"] == "cpu"
    assert machine["device_name"] == machine["cpu"] != ""
    assert machine["num_threads"] == torch.get_num_threads()
    assert 1 <= machine["num_cores"] <= (os.cpu_count() or 1)
    assert {"torch", "rdkit", "transformers", "python", "rmat_hf"} <= set(machine)
    assert platform.node() not in json.dumps(machine) or not platform.node()
