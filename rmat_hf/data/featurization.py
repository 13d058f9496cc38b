"""Featurize many molecules once, before the first epoch."""

import functools
import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import datasets
from datasets import Dataset
from rdkit import Chem
from tqdm.auto import tqdm

from rmat_hf.data.feature_cache import (
    DEAD_PROCESS,
    TOO_LITTLE_MEMORY,
    FeatureCache,
    FeaturizedMolecule,
)
from rmat_hf.data.stored_features import count_nodes, pack_features
from rmat_hf.data.training_table import DroppedRow
from rmat_hf.data.worker_pool import WorkerPool
from rmat_hf.model.features_rmat import Molecule, MoleculeError, parse_molecule
from rmat_hf.model.geometry_rmat import ConformerError
from rmat_hf.model.processing_rmat import RMatProcessor

logger = logging.getLogger(__name__)

# Column with the number of nodes of every row.
LENGTH_COLUMN = "num_nodes"
# Molecules that a worker takes at a time, and that the cache gets in one transaction.
CHUNK_SIZE = 64
MIN_ITEM_TIME_LIMIT_S = 600

# The binary form of an RDKit molecule; or the canonical SMILES and, as RDKit does not read back
# the canonical SMILES of some metal complexes, the given one.
_Job = tuple[bytes] | tuple[str, str]


def featurize_dataset(
    dataset: Dataset,
    processor: RMatProcessor,
    *,
    num_workers: int = 1,
    cache_dir: str | Path | None = None,
) -> tuple[Dataset, list[DroppedRow]]:
    """Add the features of every molecule to a data set.

    Args:
        dataset (`datasets.Dataset`): With the columns of `load_training_table`.
        processor (`RMatProcessor`): Decides the geometry.
        num_workers (`int`, *optional*, defaults to 1): Processes.
        cache_dir (`str` or `Path`, *optional*): Folder of a cache; by default there is none.

    Returns:
        The data set with `features`, packed, `num_nodes` and `geometry_source`, without the rows
        that could not be featurized, and those rows with their reasons.
    """
    molecules: list[Molecule] = dataset["smiles"][:]
    canonical_smiles = None
    if "canonical_smiles" in dataset.column_names:
        canonical_smiles = dataset["canonical_smiles"][:]
    if "mol" in dataset.column_names:
        molecules = [
            Chem.Mol(binary) if binary is not None else smiles
            for binary, smiles in zip(dataset["mol"], molecules, strict=True)
        ]
    outcomes = featurize_molecules(
        molecules,
        processor,
        num_workers=num_workers,
        cache_dir=cache_dir,
        canonical_smiles=canonical_smiles,
        show_progress=True,
    )
    dropped = [
        DroppedRow(row, smiles, outcome.failure)
        for row, smiles, outcome in zip(dataset["row"], dataset["smiles"], outcomes, strict=True)
        if outcome.failure
    ]
    kept = [position for position, outcome in enumerate(outcomes) if not outcome.failure]
    sources = [outcomes[position].geometry_source for position in kept]
    num_step_downs = sum("step down" in source for source in sources)
    if num_step_downs:
        logger.warning("%d molecules stepped down to another geometry.", num_step_downs)
    features = [outcomes[position].features for position in kept]
    featurized = dataset.select(kept) if dropped else dataset
    for name, values, dtype in (
        ("features", features, "large_binary"),
        (LENGTH_COLUMN, count_nodes(features), "int64"),
        ("geometry_source", sources, "string"),
    ):
        featurized = featurized.add_column(name, values, feature=datasets.Value(dtype))
    return featurized, dropped


def featurize_molecules(
    molecules: Sequence[Molecule],
    processor: RMatProcessor,
    *,
    num_workers: int = 1,
    cache_dir: str | Path | None = None,
    canonical_smiles: Sequence[str] | None = None,
    show_progress: bool = False,
) -> list[FeaturizedMolecule]:
    """Compute the packed features of molecules, or look them up.

    The atoms of a SMILES come in canonical order, however it is written and with a cache or not;
    those of an RDKit molecule keep theirs.

    Args:
        molecules (`Sequence[str | Chem.Mol | None]`): SMILES or RDKit molecules.
        processor (`RMatProcessor`): Decides the geometry.
        num_workers (`int`, *optional*, defaults to 1): Processes; 0 and 1 are this one.
        cache_dir (`str` or `Path`, *optional*): Folder of a cache; by default there is none.
        canonical_smiles (`Sequence[str]`, *optional*):
            Of the heavy-atom molecules, as `load_training_table` gives them: saves computing them.
        show_progress (`bool`, *optional*, defaults to `False`): Show a progress bar.

    Returns:
        `list[FeaturizedMolecule]`: one outcome per molecule. One that kills a worker has failed.
    """
    outcome_of_key: dict[str, FeaturizedMolecule] = {}
    jobs: dict[str, _Job] = {}
    keys = []
    for position, molecule in enumerate(molecules):
        try:
            key, job = _build_job(
                molecule,
                canonical_smiles=canonical_smiles[position] if canonical_smiles else None,
                max_atoms=processor.max_atoms,
            )
            jobs[key] = job
        except MoleculeError as error:
            key = f"row:{position}"
            outcome_of_key[key] = FeaturizedMolecule(b"", "", error.reason)
        except MemoryError:
            key = f"row:{position}"
            outcome_of_key[key] = FeaturizedMolecule(b"", "", TOO_LITTLE_MEMORY)
        keys.append(key)
    cache: AbstractContextManager[FeatureCache | None] = nullcontext()
    if cache_dir is not None:
        cache = FeatureCache(cache_dir, processor)
    with cache as open_cache:
        if open_cache is not None:
            outcome_of_key |= open_cache.load(list(jobs))
        missing = {key: job for key, job in jobs.items() if key not in outcome_of_key}
        if open_cache is not None:
            num_found = len(jobs) - len(missing)
            logger.info(
                "Feature cache: %d molecules found, %d to compute.", num_found, len(missing)
            )
        chunks = _iterate_outcomes(missing, processor, num_workers=num_workers)
        with tqdm(
            total=len(missing), desc="Featurizing", disable=not (missing and show_progress)
        ) as progress:
            for outcomes in chunks:
                outcome_of_key |= outcomes
                if open_cache is not None:
                    open_cache.save(outcomes)
                progress.update(len(outcomes))
    return [outcome_of_key[key] for key in keys]


def _build_job(
    molecule: Molecule, *, canonical_smiles: str | None, max_atoms: int
) -> tuple[str, _Job]:
    """Return the key of the molecule in the cache, and what is featurized in its place."""
    if isinstance(molecule, Chem.Mol):
        binary = molecule.ToBinary()
        return "mol:" + hashlib.sha256(binary).hexdigest(), (binary,)
    if canonical_smiles is None:
        canonical_smiles = Chem.MolToSmiles(parse_molecule(molecule, max_atoms=max_atoms))
    return canonical_smiles, (canonical_smiles, str(molecule))


def _iterate_outcomes(
    jobs: dict[str, _Job], processor: RMatProcessor, *, num_workers: int
) -> Iterator[dict[str, FeaturizedMolecule]]:
    items = list(jobs.items())
    chunks = [items[start : start + CHUNK_SIZE] for start in range(0, len(items), CHUNK_SIZE)]
    if num_workers <= 1:
        for chunk in chunks:
            yield {key: _featurize(job, processor) for key, job in chunk}
        return
    pool = WorkerPool(
        functools.partial(_featurize_jobs, processor=processor),
        build_death,
        num_workers=num_workers,
        item_time_limit_s=find_item_time_limit(processor),
    )
    with closing(pool.iterate_outcomes(chunks)) as computed:
        for jobs_done, outcomes in computed:
            yield {key: outcome for (key, _), outcome in zip(jobs_done, outcomes, strict=True)}


def featurize_one_by_one(
    molecules: Iterable[Molecule], processor: RMatProcessor, *, cache_dir: str | Path | None = None
) -> list[FeaturizedMolecule]:
    """Compute the packed features of molecules, each before the next one is taken.

    Args:
        molecules, processor, cache_dir: As in [`featurize_molecules`], with the same outcomes.
    """
    outcomes = []
    computed: dict[str, FeaturizedMolecule] = {}
    with nullcontext() if cache_dir is None else FeatureCache(cache_dir, processor) as cache:
        for molecule in molecules:
            try:
                key, job = _build_job(
                    molecule, canonical_smiles=None, max_atoms=processor.max_atoms
                )
            except MoleculeError as error:
                outcomes.append(FeaturizedMolecule(b"", "", error.reason))
                continue
            except MemoryError:
                outcomes.append(FeaturizedMolecule(b"", "", TOO_LITTLE_MEMORY))
                continue
            outcome = computed.get(key) or (cache and cache.load([key]).get(key))
            if not outcome:
                outcome = computed[key] = _featurize(job, processor)
            outcomes.append(outcome)
        if cache is not None:
            cache.save(computed)
    return outcomes


def find_item_time_limit(processor: RMatProcessor) -> int:
    """Return the seconds that a worker may take for one molecule before it is killed.

    It is no part of the geometry's options, but the last resort where RDKit takes no time limit.
    """
    return max(MIN_ITEM_TIME_LIMIT_S, 20 * processor.conformer_time_limit_s)


def build_death(cause: str) -> FeaturizedMolecule:
    """Return the outcome of a molecule that killed its process."""
    return FeaturizedMolecule(b"", "", f"{DEAD_PROCESS} {cause}")


def _featurize_jobs(
    jobs: Iterable[tuple[str, _Job]], *, processor: RMatProcessor
) -> list[FeaturizedMolecule]:
    return [_featurize(job, processor) for _, job in jobs]


def _featurize(job: _Job, processor: RMatProcessor) -> FeaturizedMolecule:
    for molecule in job:
        try:
            features = processor.featurize_compactly(
                Chem.Mol(molecule) if isinstance(molecule, bytes) else molecule  # type: ignore[call-overload]  # typed str
            )
        except MoleculeError as error:
            outcome = FeaturizedMolecule(b"", "", error.reason)
        except ConformerError as error:
            return FeaturizedMolecule(b"", "", error.reason)
        except MemoryError:
            return FeaturizedMolecule(b"", "", TOO_LITTLE_MEMORY)
        else:
            return FeaturizedMolecule(pack_features(features), features.geometry_source, "")
    return outcome
