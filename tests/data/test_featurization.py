import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import rdkit
from full_disks import small_files
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from tiny import TINY_SMILES

from rmat_hf.data import featurization
from rmat_hf.data.featurization import (
    FeatureCache,
    FeaturizedMolecule,
    choose_cache_dir,
    describe_processor,
    featurize_molecules,
    find_feature_cache_dir,
    iterate_featurized,
)
from rmat_hf.data.stored_features import pack_features
from rmat_hf.model.processing_rmat import RMatProcessor

DESCRIPTORS = ["MolWt", "TPSA", "MaxPartialCharge"]


def pack(smiles: str, processor: RMatProcessor) -> bytes:
    """Features of a molecule in canonical order."""
    return pack_features(processor.featurize_compactly(Chem.CanonSmiles(smiles)))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("descriptors", [None, DESCRIPTORS])
def test_each_molecule_has_its_features_or_a_reason(
    descriptors: list[str] | None, num_workers: int
) -> None:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=descriptors, max_atoms=9)
    smiles = ["C1CC", *TINY_SMILES, "C" * 10]
    first, *outcomes, last = featurize_molecules(smiles, processor, num_workers=num_workers)
    assert [outcome.features for outcome in outcomes] == [
        pack(text, processor) for text in smiles[1:-1]
    ]
    assert {outcome.geometry_source for outcome in outcomes} == {"bounds"}
    assert "ring" in first.failure
    assert "max_atoms=9" in last.failure


# Many molecules, with and without a cache


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_every_way_of_writing_has_the_same_features(num_workers: int) -> None:
    processor = RMatProcessor(conformer_method="kdg")
    mols = [Chem.MolFromSmiles(smiles) for smiles in TINY_SMILES]
    outcomes = [
        featurize_molecules(
            [Chem.MolToRandomSmilesVect(mol, 1, randomSeed=seed)[0] for mol in mols],
            processor,
            num_workers=num_workers,
        )
        for seed in (1, 2)
    ]
    assert outcomes[0] == outcomes[1]
    assert [outcome.features for outcome in outcomes[0]] == [
        pack(smiles, processor) for smiles in TINY_SMILES
    ]


def build_mixed_molecules() -> list[Any]:
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=3)
    other = Chem.Mol(mol)
    other.GetConformer().SetPositions(other.GetConformer().GetPositions() * 1.1)
    return ["CCO", "OCC", mol, other, "C1CC", None, *TINY_SMILES, "[Na+].[Cl-]"]


class Computed:
    """Counts what the processor featurizes, and ends the process at some molecules."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, deadly: str = "", stop_after: int = -1
    ) -> None:
        self.count = 0
        compute = RMatProcessor.featurize_compactly

        def featurize(processor: RMatProcessor, molecule: Any) -> Any:
            if self.count == stop_after:
                raise KeyboardInterrupt
            if getattr(molecule, "smiles", molecule) == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
            return compute(processor, molecule)

        monkeypatch.setattr(RMatProcessor, "featurize_compactly", featurize)


def test_cached_and_uncached_features_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    molecules = build_mixed_molecules()
    processor = RMatProcessor(conformer_method="kdg", molecule_descriptors=["MolWt"])
    plain = featurize_molecules(molecules, processor)
    assert featurize_molecules(molecules, processor, cache_dir=tmp_path) == plain
    computed = Computed(monkeypatch)
    for num_workers in (0, 2):
        options: dict[str, Any] = {"num_workers": num_workers, "cache_dir": tmp_path}
        assert featurize_molecules(molecules, processor, **options) == plain
        assert list(iterate_featurized(iter(molecules), processor, **options)) == plain
    assert computed.count == 0
    assert plain[0] == plain[1]
    assert len({outcome.features for outcome in plain[1:4]}) == 3
    assert [bool(outcome.failure) for outcome in plain[:7]] == [False] * 4 + [True] * 2 + [False]
    canonical = [outcome.canonical_smiles for outcome in plain]
    assert canonical[:6] == ["CCO", "CCO", "CCO", "CCO", "", ""]
    assert canonical[6:12] == [Chem.CanonSmiles(smiles) for smiles in TINY_SMILES]


def test_equal_molecules_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = RMatProcessor(geometry="2d")
    computed = Computed(monkeypatch)
    outcomes = featurize_molecules(["CCO", "CCN"] * 100, processor)
    assert computed.count == 2
    assert outcomes[:2] * 100 == outcomes
    computed.count = 0
    assert list(iterate_featurized(["CCO", "CCN"] * 10, processor)) == outcomes[:20]
    assert computed.count == 2


def test_interrupted_run_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = RMatProcessor(geometry="2d")
    smiles = ["C" * (1 + row) for row in range(100)]
    with monkeypatch.context() as patch:
        Computed(patch, stop_after=80)
        with pytest.raises(KeyboardInterrupt):
            featurize_molecules(smiles, processor, cache_dir=tmp_path)
    computed = Computed(monkeypatch)
    outcomes = featurize_molecules(smiles, processor, cache_dir=tmp_path)
    assert 20 <= computed.count < 40
    assert [outcome.features for outcome in outcomes] == [pack(text, processor) for text in smiles]


@pytest.mark.parametrize("cached", [False, True])
def test_molecule_that_kills_its_worker_fails_and_the_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    processor = RMatProcessor(geometry="2d")
    expected = featurize_molecules(TINY_SMILES, processor)
    cache_dir = tmp_path if cached else None
    molecules = [*TINY_SMILES[:2], "CCN", *TINY_SMILES[2:]]
    with monkeypatch.context() as patch:
        Computed(patch, deadly="CCN")
        for num_workers in (1, 2):
            outcomes = featurize_molecules(
                molecules, processor, num_workers=num_workers, cache_dir=cache_dir
            )
            assert [*outcomes[:2], *outcomes[3:]] == expected
            assert outcomes[2].failure.startswith("the process that featurizes it was killed")
    again = featurize_molecules(molecules, processor, cache_dir=cache_dir)
    assert again[2].failure == ""


def test_molecule_without_enough_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: RMatProcessor, molecule: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(RMatProcessor, "featurize_compactly", refuse)
    (outcome,) = featurize_molecules(["CCO"], RMatProcessor(geometry="2d"))
    assert "not enough memory" in outcome.failure
    assert not outcome.is_repeatable


# The cache

REPO_ROOT = Path(__file__).resolve().parents[2]
PROCESSOR = RMatProcessor(geometry="bounds")
OUTCOMES = {
    "CCO": FeaturizedMolecule(b"\x00\x01features", "bounds", "", "CCO"),
    "C": FeaturizedMolecule(b"", "", "no conformer with etkdg_v3 in 5 attempts", "C"),
}

WRITER = """
import sys
from contextlib import closing
from rmat_hf.data.featurization import FeatureCache, FeaturizedMolecule
from rmat_hf.model.processing_rmat import RMatProcessor
with closing(FeatureCache(sys.argv[1], RMatProcessor(geometry="bounds"))) as cache:
    for start in range(0, 10**9, 100):
        cache.save(
            {
                str(i): FeaturizedMolecule(b"%d" % i * 50, "", "", "")
                for i in range(start, start + 100)
            }
        )
        print(start + 100, flush=True)
"""


def open_cache(folder: str | Path) -> closing[FeatureCache]:
    return closing(FeatureCache(folder, PROCESSOR))


def name_file(processor: RMatProcessor, folder: Path) -> str:
    with closing(FeatureCache(folder, processor)) as cache:
        return cache.path.name


def test_outcomes_are_kept_but_not_what_a_time_limit_decided(tmp_path: Path) -> None:
    limit = "no conformer with kdg within the time limit of 30 s"
    decided = {
        "N": FeaturizedMolecule(b"", "", limit, ""),
        "O": FeaturizedMolecule(b"1", f"bounds (step down: {limit})", "", ""),
    }
    with open_cache(tmp_path / "new" / "folder") as cache:
        assert cache.load(["CCO"]) == {}
        cache.save(OUTCOMES | decided)
    with open_cache(tmp_path / "new" / "folder") as cache:
        assert cache.load(["CCO", "unknown", "C", "N", "O"]) == OUTCOMES


def test_every_option_and_version_has_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    hashes = [name_file(RMatProcessor(**option), tmp_path) for option in options]
    assert len(set(hashes)) == len(hashes)
    assert name_file(RMatProcessor(), tmp_path) == hashes[0]
    monkeypatch.setattr(rdkit, "__version__", "1.0")
    assert name_file(RMatProcessor(), tmp_path) not in hashes
    monkeypatch.undo()
    processor = RMatProcessor()
    processor.featurizer_version += 1
    assert name_file(processor, tmp_path) not in hashes


def test_file_that_is_no_cache_is_reported_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / name_file(PROCESSOR, tmp_path)
    path.write_bytes(b"not a database " * 500)
    with caplog.at_level(logging.WARNING), open_cache(tmp_path) as cache:
        cache.save(OUTCOMES)
        assert cache.load(["CCO"]) == {}
    assert len(caplog.records) == 1
    assert f"feature cache {path} cannot be used" in caplog.text
    assert path.read_bytes().startswith(b"not a database")


def test_disk_that_is_full_is_one_warning_and_no_wrong_features(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a screen, which opens the cache for every few molecules."""
    with open_cache(tmp_path) as cache:
        cache.save(OUTCOMES)
        size = cache.path.stat().st_size
    large = {str(i): FeaturizedMolecule(bytes([i]) * 500, "bounds", "", "") for i in range(250)}
    with small_files(size + 4096):
        for _ in range(3):
            with (
                caplog.at_level(logging.WARNING),
                open_cache(tmp_path) as cache,
            ):
                cache.save(large)
    assert len(caplog.records) == 1
    assert "cannot be used" in caplog.text
    with open_cache(tmp_path) as cache:
        assert cache.load([*OUTCOMES, *large]) == OUTCOMES
        cache.save(large)
        assert cache.load([*large]) == large


@pytest.mark.slow
def test_killed_process_leaves_whole_transactions(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=REPO_ROOT
    )
    assert process.stdout is not None
    saved = int(process.stdout.readline())
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with open_cache(tmp_path) as cache:
        found = cache.load([str(i) for i in range(saved)])
        assert len(found) == saved
        assert all(o.features == key.encode() * 50 for key, o in found.items())
        cache.save(OUTCOMES)
        assert cache.load(list(OUTCOMES)) == OUTCOMES


def test_default_cache_is_the_users_and_a_user_without_a_home_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_feature_cache_dir() == Path.home() / ".cache" / "rmat-hf" / "features"
    assert [choose_cache_dir(it) for it in (None, "none", str(tmp_path))] == [None, None, tmp_path]
    monkeypatch.setattr(featurization, "find_feature_cache_dir", lambda: tmp_path)
    assert choose_cache_dir("default") == tmp_path
    monkeypatch.setattr(featurization, "find_feature_cache_dir", Mock(side_effect=RuntimeError))
    assert choose_cache_dir("default") is None
    assert "Choose a folder with --feature-cache" in caplog.text


def test_options_of_a_processor_are_those_that_it_saves(tmp_path: Path) -> None:
    processor = RMatProcessor(geometry="2d", max_atoms=7)
    processor.save_pretrained(tmp_path)
    options = describe_processor(processor)
    assert options == describe_processor(RMatProcessor.from_pretrained(tmp_path))
    assert describe_processor(RMatProcessor(**options)) == options
