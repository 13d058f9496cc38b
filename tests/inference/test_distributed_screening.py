import sys
from pathlib import Path
from typing import Any

import pytest
from processes import run_python
from tiny import TINY_SMILES

from rmat_hf.inference.distributed_screening import WriteScreenShards, run_distributed_screen
from rmat_hf.inference.screening import run_embedding, run_prediction
from rmat_hf.inference.screening_options import ScreeningOptions

OPTIONS = ScreeningOptions(shard_size=2)
RUN = """
import sys
from rmat_hf.inference.distributed_screening import run_distributed_screen
from rmat_hf.inference.screening_options import ScreeningOptions

if __name__ == "__main__":
    names = ("model", "molecules", "output")
    run_distributed_screen(
        "predict", dict(zip(names, sys.argv[1:4])), num_tasks=2, logging_dir=sys.argv[4],
        options=ScreeningOptions(shard_size=2),
    )
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "input.smi"
    path.write_text("\n".join([*TINY_SMILES, "C1CC"]))
    return path


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("verb", ["predict", "embed"])
def test_steps_write_the_folder_of_one_process(
    tiny_model_folder: Path, source: Path, tmp_path: Path, verb: Any
) -> None:
    run = run_prediction if verb == "predict" else run_embedding
    arguments = {"model": tiny_model_folder, "molecules": source}
    run(**arguments, output=tmp_path / "whole", options=OPTIONS)
    step = WriteScreenShards(verb, {**arguments, "output": tmp_path / "parts"}, OPTIONS)
    for rank in (2, 0, 1):
        assert not (tmp_path / "parts" / "summary.json").exists()
        step(None, rank, 3)
    assert read_files(tmp_path / "parts") == read_files(tmp_path / "whole")


@pytest.mark.slow
def test_two_local_tasks_write_the_folder_of_one_process(
    tiny_model_folder: Path, source: Path, tmp_path: Path
) -> None:
    pytest.importorskip("datatrove")
    run_prediction(tiny_model_folder, source, output=tmp_path / "whole", options=OPTIONS)
    (tmp_path / "run.py").write_text(RUN)
    command = ["run.py", tiny_model_folder, source, tmp_path / "parts", tmp_path / "logs"]
    for lost in (None, tmp_path / "parts" / "part-00001.parquet"):
        if lost is not None:
            lost.unlink()
        done = run_python(command, folder=tmp_path)
        assert done.returncode == 0, done.stderr[-4000:]
        assert read_files(tmp_path / "parts") == read_files(tmp_path / "whole")


def test_one_file_is_no_output_of_several_tasks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out\.csv is one file. Several tasks need a folder"):
        run_distributed_screen(
            "predict", {"output": "out.csv"}, num_tasks=2, logging_dir=str(tmp_path)
        )


def test_executor_that_is_not_installed_is_an_error_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datatrove", None)
    with pytest.raises(ValueError, match=r"pip install 'rmat-hf\[distributed\]'"):
        run_distributed_screen(
            "predict", {"output": "screen"}, num_tasks=2, logging_dir=str(tmp_path)
        )
