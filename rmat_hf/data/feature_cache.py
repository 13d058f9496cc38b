"""Features of molecules on disk, so that a second run or model does not compute them again."""

import hashlib
import json
import logging
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import rdkit
from transformers.utils.logging import warning_once

from rmat_hf.model.geometry_rmat import TIME_LIMIT
from rmat_hf.model.processing_rmat import RMatProcessor

logger = logging.getLogger(__name__)

# Goes up whenever the table or the layout of the packed features changes.
CACHE_VERSION = 1
BUSY_TIMEOUT_S = 60.0
MAX_QUERY_KEYS = 500

# Reasons of failures that another machine, or a second attempt, may not have.
TOO_LITTLE_MEMORY = "there is not enough memory to featurize it; a smaller max_atoms refuses it"
DEAD_PROCESS = "the process that featurizes it"

_CREATE = """CREATE TABLE IF NOT EXISTS molecules (
    key TEXT PRIMARY KEY, features BLOB NOT NULL, geometry_source TEXT NOT NULL,
    failure TEXT NOT NULL, checksum INTEGER NOT NULL
) WITHOUT ROWID"""


class FeaturizedMolecule(NamedTuple):
    """The outcome of one molecule.

    Args:
        features (`bytes`): As from `pack_features`; empty after a failure.
        geometry_source (`str`): Entry of `geometry_sources`; empty after a failure.
        failure (`str`): Why there are no features; empty if there are.
    """

    features: bytes
    geometry_source: str
    failure: str

    @property
    def is_repeatable(self) -> bool:
        """Whether every machine gives the same: neither time nor memory took part in it."""
        if TIME_LIMIT in self.geometry_source or TIME_LIMIT in self.failure:
            return False
        return not self.failure.startswith((TOO_LITTLE_MEMORY, DEAD_PROCESS))


class FeatureCache:
    """Outcomes of molecules by key, in one SQLite file per processor; use it in a `with` block.

    Several runs may share a folder. A file that cannot be read or written is reported in a warning
    and not used; a damaged entry counts as missing.

    Args:
        cache_dir (`str` or `Path`): Folder of the cache files.
        processor (`RMatProcessor`): Whose options decide the features.
    """

    def __init__(self, cache_dir: str | Path, processor: RMatProcessor) -> None:
        self.path = Path(cache_dir) / f"{compute_processor_hash(processor)}.sqlite"
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> "FeatureCache":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S)
            with self._connection:
                self._connection.execute(_CREATE)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)
        return self

    def __exit__(self, *exception_info: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def load(self, keys: Sequence[str]) -> dict[str, FeaturizedMolecule]:
        """Return the outcomes that are known, by key."""
        found: dict[str, FeaturizedMolecule] = {}
        for start in range(0, len(keys), MAX_QUERY_KEYS):
            for key, features, geometry_source, failure, checksum in self._select(
                keys[start : start + MAX_QUERY_KEYS]
            ):
                outcome = FeaturizedMolecule(features, geometry_source, failure)
                if checksum == _compute_checksum(key, outcome):
                    found[key] = outcome
        return found

    def save(self, outcomes: Mapping[str, FeaturizedMolecule]) -> None:
        """Store the outcomes in one transaction, without those that a time limit decided."""
        rows = [
            (key, *outcome, _compute_checksum(key, outcome))
            for key, outcome in outcomes.items()
            if outcome.is_repeatable
        ]
        if self._connection is None or not rows:
            return
        try:
            with self._connection:
                self._connection.executemany(
                    "INSERT OR REPLACE INTO molecules VALUES (?, ?, ?, ?, ?)", rows
                )
        except sqlite3.Error as error:
            self._give_up(error)

    def _select(self, keys: Sequence[str]) -> list[tuple[str, bytes, str, str, int]]:
        if self._connection is None:
            return []
        places = ", ".join("?" * len(keys))
        query = f"SELECT * FROM molecules WHERE key IN ({places})"  # noqa: S608 - places only
        try:
            return self._connection.execute(query, list(keys)).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self._give_up(error)
            return []

    def _give_up(self, error: Exception) -> None:
        # a screen opens the cache for every few molecules
        warning_once(
            logger,
            "The feature cache %s cannot be used (%s): features are computed. Delete the file if "
            "it is damaged, or choose another folder.",
            self.path,
            str(error),
        )
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def compute_processor_hash(processor: RMatProcessor) -> str:
    """Return a name for everything that decides the features, RDKit's version included."""
    options = processor.to_dict()
    for key in ("auto_map", "processor_class", "feature_extractor_type", "custom_pipelines"):
        options.pop(key, None)
    facts = {**options, "rdkit": rdkit.__version__, "cache_version": CACHE_VERSION}
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def find_feature_cache_dir(cache_home: str | Path | None = None) -> Path:
    """Return the folder of the user's feature cache.

    Args:
        cache_home (`str` or `Path`, *optional*, defaults to `~/.cache`):
            The user's cache folder. A command line passes `XDG_CACHE_HOME` here if it is set.
    """
    home = Path(cache_home) if cache_home else Path.home() / ".cache"
    return home / "rmat-hf" / "features"


def _compute_checksum(key: str, outcome: FeaturizedMolecule) -> int:
    texts = "\0".join((key, outcome.geometry_source, outcome.failure))
    return zlib.crc32(outcome.features, zlib.crc32(texts.encode()))
