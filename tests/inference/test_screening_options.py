from typing import Any

import pytest

from rmat_hf.inference.screening_options import ScreeningOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; the least is 1"),
        ({"shard_size": 0}, "shard_size is 0; the least is 1"),
        ({"num_proc": -1}, "num_proc is -1; the least is 0"),
        ({"output_format": "xlsx"}, "output_format is 'xlsx'. Choose one of parquet, csv"),
        ({"task": (2, 2)}, "task 2/2 is not there: 2 tasks count from 0 to 1"),
        ({"task": (0, 0)}, "task 0/0 is not there"),
    ],
)
def test_wrong_values_are_refused_with_the_way_out(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScreeningOptions(**values)
