"""Featurize many molecules: one loop for every verb, and a cache for the next run."""

import hashlib
import json
import logging
import sqlite3
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import rdkit
from rdkit import Chem
from tqdm.auto import tqdm
from transformers.utils.logging import warning_once

from rmat_hf.data.shards import find_difference
from rmat_hf.data.stored_features import (
    FEATURES_COLUMN,
    FEATURES_TYPE,
    build_features_column,
    pack_dataset,
    pack_features,
    unpack_features,
)
from rmat_hf.data.supervised_map import map_supervised
from rmat_hf.errors import UserError
from rmat_hf.flags import DEFAULT_CACHE, NO_CACHE
from rmat_hf.model.features_rmat import FEATURIZER_VERSION, Molecule, MoleculeError, parse_canonical
from rmat_hf.model.geometry_rmat import TIME_LIMIT
from rmat_hf.model.processing_rmat import RMatProcessor

logger = logging.getLogger(__name__)

# Column with the number of nodes of every row.
LENGTH_COLUMN = "num_nodes"
PROCESSOR_COLUMN = "processor"
# The other columns of features; see stored_features.py.
FEATURE_FIELDS = pa.schema(
    [
        (FEATURES_COLUMN, FEATURES_TYPE),
        (LENGTH_COLUMN, pa.int32()),
        ("geometry_source", pa.string()),
    ]
)
# Goes up whenever the table or the layout of the packed features changes.
CACHE_VERSION = 2
# Molecules that a worker takes at a time, and that the cache gets in one transaction.
_CHUNK_SIZE = 64
_MIN_ITEM_TIME_LIMIT_S = 600
_BUSY_TIMEOUT_S = 60.0
# Reasons of failures that another machine, or a second attempt, may not have.
_TOO_LITTLE_MEMORY = "there is not enough memory to featurize it; a smaller max_atoms refuses it"
_DEAD_PROCESS = "the process that featurizes it"
# What a saved processor holds beside its options: where its code is.
_CODE_KEYS = ("auto_map", "custom_pipelines")
# Options that decide which molecules have features, and not which features.
_LIMITS = (
    "max_atoms",
    "max_conformer_attempts",
    "conformer_time_limit_s",
    "on_conformer_failure",
)


class FeaturizedMolecule(NamedTuple):
    """The outcome of one molecule.

    Args:
        features (`bytes`): As from `pack_features`; empty after a failure.
        geometry_source (`str`): Entry of `geometry_sources`; empty after a failure.
        failure (`str`): Why there are no features; empty if there are.
        canonical_smiles (`str`): Of the heavy atoms; empty if it is no molecule.
    """

    features: bytes
    geometry_source: str
    failure: str
    canonical_smiles: str

    @property
    def is_repeatable(self) -> bool:
        """Whether every machine gives the same: neither time nor memory took part in it."""
        if TIME_LIMIT in self.geometry_source or TIME_LIMIT in self.failure:
            return False
        return not self.failure.startswith((_TOO_LITTLE_MEMORY, _DEAD_PROCESS))


def featurize_molecules(
    molecules: Sequence[Molecule],
    processor: RMatProcessor,
    *,
    num_workers: int = 0,
    cache_dir: str | Path | None = None,
    show_progress: bool = False,
) -> list[FeaturizedMolecule]:
    """Return the outcome of every molecule; equal ones are computed once."""
    keys = [_build_key(molecule) for molecule in molecules]
    unique = dict(zip(keys, molecules, strict=True))
    options: dict[str, Any] = {"num_workers": num_workers, "cache_dir": cache_dir}
    with (
        closing(iterate_featurized(unique.values(), processor, **options)) as outcomes,
        tqdm(outcomes, total=len(unique), desc="Featurizing", disable=not show_progress) as shown,
    ):
        outcome_of_key = dict(zip(unique, shown, strict=True))
    return [outcome_of_key[key] for key in keys]


def iterate_featurized(
    molecules: Iterable[Molecule],
    processor: RMatProcessor,
    *,
    num_workers: int = 0,
    cache_dir: str | Path | None = None,
) -> Generator[FeaturizedMolecule, None, None]:
    """Yield the outcome of every molecule in their order, a bounded number of them ahead.

    The atoms of a SMILES come in canonical order, however it is written and with a cache or not;
    those of an RDKit molecule keep theirs. Close the iterator, by `contextlib.closing`, if it is
    not used up: the workers end then.

    Args:
        num_workers (`int`, *optional*, defaults to 0):
            Processes. A molecule that kills one of them, or takes longer than 20 times the time
            limit of a conformer, has failed. With 0 it is this process.
    """
    compute = partial(_featurize, processor=processor)
    waiting: deque[tuple[list[str], dict[str, FeaturizedMolecule]]] = deque()
    with (
        nullcontext() if cache_dir is None else closing(FeatureCache(cache_dir, processor)) as cache
    ):

        def list_missing() -> Iterator[list[Molecule | bytes]]:
            rest = iter(molecules)
            while chunk := list(islice(rest, _CHUNK_SIZE)):
                keys = [_build_key(molecule) for molecule in chunk]
                found = cache.load(keys) if cache is not None else {}
                waiting.append((keys, found))
                unique = dict(zip(keys, chunk, strict=True))
                yield [
                    molecule.ToBinary() if isinstance(molecule, Chem.Mol) else molecule
                    for key, molecule in unique.items()
                    if key not in found
                ]

        computed = ([compute(molecule) for molecule in chunk] for chunk in list_missing())
        if num_workers > 0:
            time_limit_s = max(_MIN_ITEM_TIME_LIMIT_S, 20 * processor.conformer_time_limit_s)
            computed = map_supervised(
                compute,
                list_missing(),
                describe_death=lambda cause: _fail(f"{_DEAD_PROCESS} {cause}"),
                num_workers=num_workers,
                item_time_limit_s=time_limit_s,
            )
        with closing(computed):
            for outcomes in computed:
                keys, found = waiting.popleft()
                missing = [key for key in dict.fromkeys(keys) if key not in found]
                new = dict(zip(missing, outcomes, strict=True))
                if cache is not None:
                    cache.save(new)
                known = found | new
                yield from (known[key] for key in keys)


def _build_key(molecule: Molecule) -> str:
    """Return what two molecules with the same outcome have in common."""
    if isinstance(molecule, str):
        return molecule
    if isinstance(molecule, Chem.Mol):
        return "mol:" + hashlib.sha256(molecule.ToBinary()).hexdigest()
    return f"{type(molecule).__name__}:{molecule!r}"


def _featurize(molecule: Molecule | bytes, *, processor: RMatProcessor) -> FeaturizedMolecule:
    canonical_smiles = ""
    try:
        given: Molecule = Chem.Mol(molecule) if isinstance(molecule, bytes) else molecule  # type: ignore[arg-type]  # typed str
        parsed = parse_canonical(given, **processor.parsing_options)
        canonical_smiles = parsed.canonical_smiles or Chem.MolToSmiles(parsed.mol)
        features = processor.featurize_compactly(parsed)
    except MoleculeError as error:
        return _fail(error.reason, canonical_smiles)
    except MemoryError:
        return _fail(_TOO_LITTLE_MEMORY, canonical_smiles)
    return FeaturizedMolecule(
        pack_features(features), features.geometry_source, "", canonical_smiles
    )


def _fail(reason: str, canonical_smiles: str = "") -> FeaturizedMolecule:
    return FeaturizedMolecule(b"", "", reason, canonical_smiles)


class FeatureCache:
    """Outcomes of molecules by key, in one SQLite file per processor; close it after use.

    Several runs may share a folder. A file that cannot be read or written is reported in a warning
    and not used.

    Args:
        cache_dir (`str` or `Path`): Folder of the cache files.
        processor (`RMatProcessor`): Whose options, with RDKit's version, decide the features.
    """

    def __init__(self, cache_dir: str | Path, processor: RMatProcessor) -> None:
        facts = {**describe_processor(processor), "rdkit": rdkit.__version__}
        text = json.dumps({**facts, "cache_version": CACHE_VERSION}, sort_keys=True)
        self.path = Path(cache_dir) / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.sqlite"
        self._connection: sqlite3.Connection | None = None
        with self._tolerated():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S)
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS molecules (key TEXT PRIMARY KEY, features BLOB NOT "
                "NULL, geometry_source TEXT NOT NULL, failure TEXT NOT NULL, canonical_smiles TEXT "
                "NOT NULL) WITHOUT ROWID"
            )

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def load(self, keys: Sequence[str]) -> dict[str, FeaturizedMolecule]:
        """Return the outcomes that are known, by key; of a few hundred keys at most."""
        places = ", ".join("?" * len(keys))
        query = f"SELECT * FROM molecules WHERE key IN ({places})"  # noqa: S608 - places only
        rows: list[Any] = []
        with self._tolerated():
            if self._connection is not None:
                rows = self._connection.execute(query, tuple(keys)).fetchall()
        return {key: FeaturizedMolecule(*outcome) for key, *outcome in rows}

    def save(self, outcomes: Mapping[str, FeaturizedMolecule]) -> None:
        """Store the outcomes in one transaction, without those that time or memory decided."""
        rows = [(key, *outcome) for key, outcome in outcomes.items() if outcome.is_repeatable]
        with self._tolerated():
            if self._connection is not None:
                with self._connection as transaction:
                    transaction.executemany(
                        "INSERT OR REPLACE INTO molecules VALUES (?, ?, ?, ?, ?)", rows
                    )

    @contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, UnicodeError) as error:
            # a screen opens the cache for every few molecules
            warning_once(
                logger,
                "The feature cache %s cannot be used (%s): features are computed. Delete the file "
                "if it is damaged, or choose another folder.",
                self.path,
                str(error),
            )
            self.close()


def describe_processor(processor: RMatProcessor) -> dict[str, Any]:
    """Return the options of a processor as `preprocessor_config.json` holds them."""
    options = json.loads(processor.to_json_string())
    return {name: value for name, value in options.items() if name not in _CODE_KEYS}


def describe_processor_column(processor: RMatProcessor) -> datasets.ClassLabel:
    """Return the type of the column `processor`, in which every row has the value 0."""
    return datasets.ClassLabel(names=[json.dumps(describe_processor(processor), sort_keys=True)])


def find_options(features: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the options in the type of the column `processor`, `None` if there are none."""
    kind = (features or {}).get(PROCESSOR_COLUMN)
    return json.loads(kind.names[0]) if isinstance(kind, datasets.ClassLabel) else None


def build_processor(options: Mapping[str, Any] | None, *, source: str) -> RMatProcessor:
    """Return the processor that featurized a source, or say why it is of no use here."""
    way_out = "Featurize the molecules anew, with `rmat featurize` or featurize_dataset"
    if options is None:
        raise UserError(f"{source} does not say which processor made its features. {way_out}.")
    version = options.get("featurizer_version")
    if version != FEATURIZER_VERSION:
        raise UserError(
            f"{source} has features of featurizer version {version}, this code has "
            f"{FEATURIZER_VERSION}. {way_out}, or use the release of rmat_hf that made them."
        )
    return RMatProcessor(**options)


def find_processor(dataset: datasets.Dataset | datasets.IterableDataset) -> RMatProcessor:
    """Return the processor that featurized the rows of a data set.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            From [`featurize_dataset`] or `rmat featurize`, also after it was saved, or pushed to
            the Hub by somebody else, and loaded.

    Returns:
        [`RMatProcessor`], for [`RMatTrainer`] and for molecules to predict.

    Raises:
        UserError: The data set does not tell, or this code has another featurizer version.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from rmat_hf import RMatProcessor, featurize_dataset, find_processor
    >>> table = Dataset.from_dict({"smiles": ["CCO", "CCC"]})
    >>> rows = featurize_dataset(table, RMatProcessor(geometry="bounds"))
    >>> find_processor(rows).geometry
    'bounds'

    ```
    """
    return build_processor(find_options(dataset.features), source="The data set")


def drop_molecule_inputs(dataset: datasets.Dataset) -> datasets.Dataset:
    """Return rows without descriptors and fingerprint counts, and without who featurized them."""
    without: dict[str, Any] = {"molecule_descriptors": None, "fingerprint_counts": None}
    packed = [
        pack_features(unpack_features(it)._replace(**without)) for it in pack_dataset(dataset)
    ]
    rows = dataset.remove_columns([FEATURES_COLUMN, PROCESSOR_COLUMN])
    table = rows.with_format("arrow")[:]
    table = table.append_column(FEATURES_COLUMN, build_features_column(packed))
    kinds = datasets.Features.from_arrow_schema(table.schema) | rows.features
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=datasets.Features(kinds)))


def validate_processor(
    features: Mapping[str, Any] | None, processor: RMatProcessor, *, source: str
) -> None:
    """Raise a `UserError` if a data set, by its columns' types, has features of another kind."""
    made_by = build_processor(find_options(features), source=source)
    kinds = [
        {name: it for name, it in describe_processor(one).items() if name not in _LIMITS}
        for one in (made_by, processor)
    ]
    if difference := find_difference(*kinds):
        raise UserError(
            f"{source} has features of another processor than the model's: {difference}. Choose "
            "the options of the data set, as --geometry and --molecule-descriptors, or "
            "find_processor(rows) for a Trainer of yours; or featurize it anew."
        )


def choose_cache_dir(feature_cache: str | Path | None) -> Path | None:
    """Return the folder of the feature cache, `None` for none."""
    if feature_cache is None or feature_cache == NO_CACHE:
        return None
    if feature_cache != DEFAULT_CACHE:
        return Path(feature_cache)
    try:
        return find_feature_cache_dir()
    except RuntimeError as error:
        logger.warning("No feature cache: %s Choose a folder with --feature-cache.", error)
        return None


def find_feature_cache_dir() -> Path:
    """Return the folder of the user's feature cache; a command line heeds `XDG_CACHE_HOME`."""
    return Path.home() / ".cache" / "rmat-hf" / "features"
