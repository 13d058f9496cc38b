"""The cache gives back what was computed, or nothing: never a crash, never wrong features."""

import logging
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from full_disks import small_files

from rmat_hf.data import feature_cache
from rmat_hf.data.feature_cache import (
    FeatureCache,
    FeaturizedMolecule,
    compute_processor_hash,
    find_feature_cache_dir,
)
from rmat_hf.model.processing_rmat import RMatProcessor

REPO_ROOT = Path(__file__).resolve().parents[2]
PROCESSOR = RMatProcessor(geometry="bounds")
OUTCOMES = {
    "CCO": FeaturizedMolecule(b"\x00\x01features", "bounds", ""),
    "C": FeaturizedMolecule(b"", "", "no conformer with etkdg_v3 in 5 attempts"),
}

WRITER = """
import sys
from rmat_hf.data.feature_cache import FeatureCache, FeaturizedMolecule
from rmat_hf.model.processing_rmat import RMatProcessor
with FeatureCache(sys.argv[1], RMatProcessor(geometry="bounds")) as cache:
    for start in range(0, 10**9, 100):
        cache.save(
            {str(i): FeaturizedMolecule(b"%d" % i * 50, "", "") for i in range(start, start + 100)}
        )
        print(start + 100, flush=True)
"""


def save_range(cache_dir: str, start: int) -> None:
    for i in range(start, start + 200):
        with FeatureCache(cache_dir, PROCESSOR) as cache:
            cache.save({str(i): FeaturizedMolecule(str(i).encode(), "bounds", "")})


def test_saved_outcomes_are_loaded(tmp_path: Path) -> None:
    with FeatureCache(tmp_path / "new" / "folder", PROCESSOR) as cache:
        assert cache.load(["CCO"]) == {}
        cache.save(OUTCOMES)
    with FeatureCache(tmp_path / "new" / "folder", PROCESSOR) as cache:
        assert cache.load(["CCO", "unknown", "C"]) == OUTCOMES
        assert cache.load(["unknown"] * 2000) == {}


@pytest.mark.parametrize(
    "outcome",
    [
        FeaturizedMolecule(b"", "", "no conformer with kdg within the time limit of 30 s"),
        FeaturizedMolecule(
            b"1", "bounds (step down: no conformer with kdg within the time limit of 1 s)", ""
        ),
    ],
)
def test_what_a_time_limit_decided_is_not_kept(tmp_path: Path, outcome: Any) -> None:
    with FeatureCache(tmp_path, PROCESSOR) as cache:
        cache.save({"CCO": outcome})
        assert cache.load(["CCO"]) == {}


def test_every_option_and_version_has_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"geometry": "bounds"},
        {"conformer_method": "kdg"},
        {"conformer_hydrogens": False},
        {"force_field": "uff"},
        {"conformer_seed": 1},
        {"max_atoms": 10},
        {"on_conformer_failure": "2d"},
        {"molecule_descriptors": ["MolWt", "TPSA"]},
        {"molecule_descriptors": ["TPSA", "MolWt"]},
    ]
    hashes = [compute_processor_hash(RMatProcessor(**option)) for option in options]
    assert len(set(hashes)) == len(hashes)
    assert compute_processor_hash(RMatProcessor()) == hashes[0]
    monkeypatch.setattr(feature_cache.rdkit, "__version__", "1.0")
    assert compute_processor_hash(RMatProcessor()) not in hashes
    monkeypatch.undo()
    processor = RMatProcessor()
    processor.featurizer_version += 1
    assert compute_processor_hash(processor) not in hashes


def test_saving_and_loading_a_processor_keeps_its_file(tmp_path: Path) -> None:
    PROCESSOR.save_pretrained(tmp_path)
    loaded = RMatProcessor.from_pretrained(tmp_path)
    assert compute_processor_hash(loaded) == compute_processor_hash(PROCESSOR)


def test_file_that_is_no_cache_is_reported_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = FeatureCache(tmp_path, PROCESSOR).path
    path.write_bytes(b"not a database " * 500)
    with caplog.at_level(logging.WARNING), FeatureCache(tmp_path, PROCESSOR) as cache:
        cache.save(OUTCOMES)
        assert cache.load(["CCO"]) == {}
    assert len(caplog.records) == 1
    assert f"feature cache {path} cannot be used" in caplog.text
    assert path.read_bytes().startswith(b"not a database")


def test_folder_that_cannot_be_made_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING), FeatureCache(tmp_path / "file", PROCESSOR) as cache:
        assert cache.load(["CCO"]) == {}
    assert "cannot be used" in caplog.text


def test_disk_that_is_full_is_one_warning_and_no_wrong_features(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a screen, which opens the cache for every few molecules."""
    with FeatureCache(tmp_path, PROCESSOR) as cache:
        cache.save(OUTCOMES)
        size = cache.path.stat().st_size
    large = {str(i): FeaturizedMolecule(bytes([i]) * 500, "bounds", "") for i in range(250)}
    with small_files(size + 4096):
        for _ in range(3):
            with caplog.at_level(logging.WARNING), FeatureCache(tmp_path, PROCESSOR) as cache:
                cache.save(large)
    assert len(caplog.records) == 1
    assert "cannot be used" in caplog.text
    with FeatureCache(tmp_path, PROCESSOR) as cache:
        assert cache.load([*OUTCOMES, *large]) == OUTCOMES
        cache.save(large)
        assert cache.load([*large]) == large


def test_damaged_pages_are_never_wrong_features(tmp_path: Path) -> None:
    outcomes = {str(i): FeaturizedMolecule(str(i).encode() * 100, "bounds", "") for i in range(500)}
    with FeatureCache(tmp_path, PROCESSOR) as cache:
        cache.save(outcomes)
        path = cache.path
    content = bytearray(path.read_bytes())
    for position in range(5000, len(content), 997):
        content[position] ^= 0xFF
    path.write_bytes(content)
    with FeatureCache(tmp_path, PROCESSOR) as cache:
        found = cache.load(list(outcomes))
    assert len(found) < len(outcomes)
    assert all(outcomes[key] == outcome for key, outcome in found.items())


def test_changed_entry_counts_as_missing(tmp_path: Path) -> None:
    with FeatureCache(tmp_path, PROCESSOR) as cache:
        cache.save(OUTCOMES)
        path = cache.path
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE molecules SET features = x'00' WHERE key = 'CCO'")
    connection.close()
    with FeatureCache(tmp_path, PROCESSOR) as cache:
        assert cache.load(["CCO", "C"]) == {"C": OUTCOMES["C"]}


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2) as executor:
        list(executor.map(save_range, [str(tmp_path)] * 2, [0, 100]))
    with FeatureCache(tmp_path, PROCESSOR) as cache:
        found = cache.load([str(i) for i in range(300)])
    assert {key: outcome.features for key, outcome in found.items()} == {
        str(i): str(i).encode() for i in range(300)
    }


def test_killed_process_leaves_whole_transactions(tmp_path: Path) -> None:
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=REPO_ROOT
        )
        assert process.stdout is not None
        saved = int(process.stdout.readline())
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with FeatureCache(tmp_path, PROCESSOR) as cache:
            found = cache.load([str(i) for i in range(saved)])
            assert len(found) == saved
            assert all(o.features == key.encode() * 50 for key, o in found.items())
            cache.save(OUTCOMES)
            assert cache.load(list(OUTCOMES)) == OUTCOMES


def test_default_folder_lies_in_the_users_cache(tmp_path: Path) -> None:
    assert find_feature_cache_dir() == Path.home() / ".cache" / "rmat-hf" / "features"
    assert find_feature_cache_dir(tmp_path) == tmp_path / "rmat-hf" / "features"
