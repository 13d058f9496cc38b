import sys
from pathlib import Path
from typing import Any

import pytest
from processes import run_python
from tiny import TINY_SMILES

from rmat_hf.data.corpus_input import CorpusOptions
from rmat_hf.data.corpus_shards import featurize_corpus
from rmat_hf.data.distributed_featurization import (
    CompleteCorpus,
    WriteShards,
    run_distributed_featurization,
)
from rmat_hf.model.processing_rmat import RMatProcessor

PROCESSOR = RMatProcessor(geometry="bounds")
OPTIONS = CorpusOptions(shard_size=2)
RUN = """
import sys
from rmat_hf.data.corpus_input import CorpusOptions
from rmat_hf.data.distributed_featurization import run_distributed_featurization
from rmat_hf.model.processing_rmat import RMatProcessor

if __name__ == "__main__":
    run_distributed_featurization(
        sys.argv[1], sys.argv[2], processor=RMatProcessor(geometry="bounds"), num_tasks=2,
        logging_dir=sys.argv[3], options=CorpusOptions(shard_size=2),
    )
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "input.smi"
    path.write_text("\n".join([*TINY_SMILES, "C1CC"]))
    return str(path)


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_steps_write_the_corpus_of_one_process(source: str, tmp_path: Path) -> None:
    featurize_corpus(source, tmp_path / "whole", processor=PROCESSOR, options=OPTIONS)
    arguments = (source, str(tmp_path / "parts"), PROCESSOR, OPTIONS)
    for rank in (2, 0, 1):
        WriteShards(*arguments)(None, rank, 3)
    assert len(list((tmp_path / "parts").glob("part-*"))) == 4
    assert not (tmp_path / "parts" / "corpus.json").exists()
    CompleteCorpus(*arguments)(None)
    assert read_files(tmp_path / "parts") == read_files(tmp_path / "whole")


@pytest.mark.slow
def test_two_local_tasks_write_the_corpus_of_one_process(source: str, tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    featurize_corpus(source, tmp_path / "whole", processor=PROCESSOR, options=OPTIONS)
    (tmp_path / "run.py").write_text(RUN)
    command = ["run.py", source, tmp_path / "parts", tmp_path / "logs"]
    for lost in (None, tmp_path / "parts" / "part-00001.parquet"):
        if lost is not None:
            lost.unlink()
        done = run_python(command, folder=tmp_path)
        assert done.returncode == 0, done.stderr[-4000:]
        assert read_files(tmp_path / "parts") == read_files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("executor", "message"),
    [("cloud", "Choose one of"), ("local", r"pip install 'rmat-hf\[distributed\]'")],
)
def test_executor_that_is_not_there_is_an_error_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: Any, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "datatrove", None)
    with pytest.raises(ValueError, match=message):
        run_distributed_featurization(
            "input.smi",
            "corpus",
            processor=PROCESSOR,
            num_tasks=2,
            logging_dir=str(tmp_path),
            executor=executor,
        )
