import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
from tiny_corpus import write_corpus

from rmat_hf.data.corpus import load_corpus
from rmat_hf.data.corpus_format import CorpusError


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
    with pytest.raises(CorpusError, match=message):
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
    with pytest.raises(CorpusError, match=r"has 2 shards, corpus\.json counts 3"):
        load_corpus(folder)


@pytest.mark.parametrize("options", [{"split": "test"}, {"revision": "main"}])
def test_local_corpus_has_no_revision_and_no_other_split(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(CorpusError, match="is not on the Hub"):
        load_corpus(write_corpus(tmp_path / "corpus"), **options)
