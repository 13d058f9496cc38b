import json
import logging
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from hub_server import TOKEN, run_hub
from processes import run_python
from tiny import TINY_SMILES
from tiny_corpus import write_corpus

from rmat_hf.data.corpus import load_corpus
from rmat_hf.data.corpus_input import CorpusOptions
from rmat_hf.data.corpus_shards import featurize_corpus
from rmat_hf.errors import UserError
from rmat_hf.model.processing_rmat import RMatProcessor


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies that datasets makes go to the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "no shard .*Name a folder written by `rmat featurize`"),
        ("nowhere.parquet", "there is no such file"),
        ("nowhere-*.parquet", "there is no such file"),
    ],
)
def test_what_is_no_corpus_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        load_corpus(tmp_path / name)


def test_unfinished_corpus_loads_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_corpus(tmp_path / "corpus")
    with caplog.at_level(logging.WARNING):
        assert len(load_corpus(folder).dataset) == 6
    assert "is not finished: it has 2 shards so far" in caplog.text


def test_lost_shard_of_a_finished_corpus_is_an_error(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    (folder / "corpus.json").write_text(json.dumps({"num_shards": 3}))
    with pytest.raises(UserError, match=r"has 2 shards, corpus\.json counts 3"):
        load_corpus(folder)


@pytest.mark.parametrize("options", [{"split": "test"}, {"revision": "main"}])
def test_local_corpus_has_no_revision_and_no_other_split(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="is not on the Hub"):
        load_corpus(write_corpus(tmp_path / "corpus"), **options)


HUB_VISIT = """
import json, sys
from huggingface_hub import HfApi
from rmat_hf.data.corpus import load_corpus
from rmat_hf.errors import UserError
from rmat_hf.data.corpus_input import CorpusOptions
from rmat_hf.data.corpus_shards import featurize_corpus
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.data.corpus_input import open_corpus_input

folder, name = sys.argv[1:]
api = HfApi()
api.create_repo(name, repo_type="dataset")
api.upload_folder(repo_id=name, repo_type="dataset", folder_path=folder)
api.create_tag(name, repo_type="dataset", tag="v1")
report = {}
for streaming in (False, True):
    corpus = load_corpus(name, revision="v1", streaming=streaming)
    rows = [[row["row"], row["smiles"], row["features"].hex()] for row in corpus.dataset]
    report[str(streaming)] = [rows, corpus.processor.to_dict()]
for change in ({"split": "test"}, {"revision": "v2"}):
    try:
        load_corpus(name, **change)
    except UserError as error:
        report[next(iter(change))] = str(error)
table = open_corpus_input(name, smiles_column="smiles", revision="v1", with_all_columns=True)
report["num_rows"], report["files"] = table.num_rows, table.files
chunks = table.iterate_chunks(2, ranges=[range(1, 4), range(5, 6)])
report["ranges"] = [row for chunk in chunks for row in chunk.columns["row"]]
print(json.dumps(report))
"""


@pytest.mark.slow
def test_corpus_on_the_hub_has_the_rows_of_the_folder(tmp_path: Path) -> None:
    source = tmp_path / "input.smi"
    source.write_text("\n".join([*TINY_SMILES, "C1CC"]))
    processor = RMatProcessor(geometry="bounds")
    options = CorpusOptions(shard_size=3)
    featurize_corpus(source, tmp_path / "corpus", processor=processor, options=options)
    with run_hub() as hub:
        online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        command = ["-c", HUB_VISIT, tmp_path / "corpus", "chemist/tiny-corpus"]
        done = run_python(command, folder=tmp_path, environment=online)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    rows = [
        [row["row"], row["smiles"], row["features"].hex()]
        for row in load_corpus(tmp_path / "corpus").dataset
    ]
    for streaming in ("False", "True"):
        assert report[streaming] == [rows, processor.to_dict()]
    assert "has no split 'test', but train" in report["split"]
    assert "the Hub gives" in report["revision"]
    assert report["num_rows"] == 6
    # read where they are, at the commit that the revision names
    assert all(
        re.fullmatch(r"hf://.*@[0-9a-f]{40}/part-\d+\.parquet", file) for file in report["files"]
    )
    assert report["ranges"] == [1, 2, 3, 5]
