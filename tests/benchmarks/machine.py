"""The machine that a measurement ran on, and the memory that this process and its workers use."""

import os
import platform
import threading
from pathlib import Path
from typing import Any

import psutil
import rdkit
import torch
import transformers

from rmat_hf import __version__

SAMPLING_INTERVAL_S = 0.02
BYTES_PER_MIB = 2**20


class MemorySampler:
    """Samples the memory of this process and its children while a `with` block runs.

    `peak_mib` is the most that was seen, in MiB.
    """

    def __init__(self) -> None:
        self.peak_mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "MemorySampler":
        self._thread.start()
        return self

    def __exit__(self, *exception_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        is_running = True
        while is_running:
            # once more after the end, so that what is held then is seen too
            is_running = not self._stop.wait(SAMPLING_INTERVAL_S)
            self.peak_mib = max(self.peak_mib, compute_memory_mib())


def compute_memory_mib() -> float:
    """Return the memory of this process and its children in MiB.

    Pages that several of them share count once (on Linux: the proportional set size).
    """
    this = psutil.Process()
    total = 0
    for process in (this, *this.children(recursive=True)):
        try:
            info = process.memory_full_info()
        except psutil.Error:
            # it ended between the list and the question
            continue
        total += getattr(info, "pss", info.uss)
    return total / BYTES_PER_MIB


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what decides how fast a computation is.

    Args:
        device (`torch.device`): Where the model computes.

    Returns:
        `dict[str, Any]`: names of device and CPU, the cores that this process may use, the threads
        of torch, and versions.
    """
    cpu = _read_cpu_name()
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {
        "device": str(device),
        "device_name": device_name if device.type in ("cpu", "cuda") else device.type,
        "cpu": cpu,
        "num_cores": len(os.sched_getaffinity(0)),
        "num_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rdkit": rdkit.__version__,
        "rmat_hf": __version__,
    }


def _read_cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
