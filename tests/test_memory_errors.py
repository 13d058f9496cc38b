import numpy as np
import pytest
import torch

from rmat_hf.memory_errors import is_out_of_memory

MORE_THAN_THERE_IS = 2**46


def test_a_tensor_that_does_not_fit_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(MORE_THAN_THERE_IS)
    assert is_out_of_memory(caught.value)


def test_an_array_that_does_not_fit_is_out_of_memory() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(MORE_THAN_THERE_IS)
    assert is_out_of_memory(caught.value)


def test_an_accelerator_without_memory_is_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"))


def test_other_errors_are_not() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("out of memory"))
