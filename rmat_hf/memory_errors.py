"""Tell that there was not enough memory from everything else that goes wrong."""

import torch

# What PyTorch says on a CPU, where it raises a bare RuntimeError, and the C++ libraries below it.
_WORDS = ("allocate memory", "out of memory", "not enough memory", "bad_alloc", "bad allocation")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there was not enough memory.

    Args:
        error (`BaseException`): From Python, NumPy, RDKit or PyTorch, on any device.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _WORDS)
