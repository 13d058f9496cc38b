"""predict(...) and embed(...): many molecules in, one row per molecule out, nothing lost."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from rdkit import Chem

from rmat_hf.data.columns import (
    find_told_style,
    is_european,
    list_cells_with_commas,
    rewrite_numbers,
    rewrite_told_number,
)
from rmat_hf.data.featurization import FeaturizedMolecule, iterate_featurized
from rmat_hf.data.frames import add_columns, list_molecules_of
from rmat_hf.data.labels import restore_atom_order
from rmat_hf.data.measurements import append_covariates, find_unread_covariates
from rmat_hf.data.stored_features import (
    count_nodes,
    expand_features,
    group_by_length,
    unpack_features,
)
from rmat_hf.data.table_writer import Predictions, list_columns
from rmat_hf.data.tables import Table
from rmat_hf.errors import UserError, is_out_of_memory, say_count
from rmat_hf.loading import load_embedder, load_predictor
from rmat_hf.model.covariates_rmat import encode_covariates
from rmat_hf.model.features_rmat import Molecule, is_table, list_molecules
from rmat_hf.model.losses_rmat import compute_probabilities
from rmat_hf.model.modeling_rmat import (
    RMatForSequenceClassification,
    RMatForTokenClassification,
    RMatPreTrainedModel,
)
from rmat_hf.model.pipeline_rmat import LEVELS
from rmat_hf.model.processing_rmat import RMatProcessor, list_warnings
from rmat_hf.model.trust_rmat import (
    DEFAULT_COVERAGE,
    describe_blocks,
    find_trust,
    predict_blocks,
)

logger = logging.getLogger(__name__)

# What a stranger's processor may ask of this machine, without a word of the user.
MAX_ATOMS_BY_DEFAULT = 1000
MAX_TIME_LIMIT_S = 300
MISSING_COVARIATES = (
    "The table has no column %s, which the model was trained with: the mean of training stands in "
    "every row."
)
TOO_LARGE_FOR_MODEL = "the model needs more memory for it than there is"
# Batches whose molecules are grouped by size together; the features wait in compact form.
_BATCHES_GROUPED = 32
_ROWS_READ = 1000


class Embeddings(NamedTuple):
    """Vectors of molecules or of their atoms, one entry per molecule in input order.

    Args:
        values (`np.ndarray` of shape `(num_molecules, pooled_size)`):
            float32; NaN with an error. With `level="atom"` an array of objects,
            `(num_molecules,)`: each `(num_atoms, hidden_size)`, float32, its heavy atoms in the
            order of the SMILES or RDKit molecule that was given; `None` with an error.
        errors (`list[str | None]` of length `num_molecules`): Why a row has no embedding.
    """

    values: np.ndarray
    errors: list[str | None]

    def to_columns(self, *, is_wide: bool = False) -> dict[str, list[Any]]:
        """Return table columns: `embedding` (a list, None where there is no value) and `error`.

        With `is_wide` vectors of molecules have a column for each number, `embedding_0` and so on.
        """
        if is_wide and self.values.dtype != object:
            numbers = list_columns(self.values)
            return {**name_components(numbers), "error": list(self.errors)}
        embeddings = [
            None if error is not None else row.tolist()
            for row, error in zip(self.values, self.errors, strict=True)
        ]
        return {"embedding": embeddings, "error": list(self.errors)}


def name_components(numbers: Iterable[Any]) -> dict[str, Any]:
    """Return the numbers of vectors by the names of their columns."""
    return {f"embedding_{idx}": it for idx, it in enumerate(numbers)}


def predict(  # noqa: PLR0913 - what is predicted, and how
    model: str | Path | RMatForSequenceClassification | RMatForTokenClassification,
    molecules: Iterable[Molecule] | pd.DataFrame,
    *,
    smiles_column: str | None = None,
    coverage: float = DEFAULT_COVERAGE,
    trust: bool = True,
    covariates: Mapping[str, Sequence[Any]] | None = None,
    processor: RMatProcessor | None = None,
    revision: str | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    cache_dir: str | Path | None = None,
) -> Predictions | pd.DataFrame:
    """Predict the properties of molecules, or of each of their atoms, with a finetuned model.

    Args:
        model (`str`, `Path` or a loaded model):
            Folder, Hub id or finetuned model, of molecules or of atoms, or ensemble.
        molecules (`Iterable[str | Chem.Mol | None]` or `pandas.DataFrame`):
            SMILES or RDKit molecules, a column too; or a table with them.
        smiles_column (`str`, *optional*, defaults to `"smiles"`):
            Column of a table; if none is called so, the one whose cells are SMILES.
        coverage (`float`, *optional*, defaults to 0.9):
            Share of the intervals, or sets of classes, that are to hold the truth.
        trust (`bool`, *optional*, defaults to `True`):
            Whether to say how far to trust each prediction, if the model has what that needs.
        covariates (`Mapping[str, Sequence]`, *optional*):
            Cells of the columns that a model reads beside molecules (`config.covariates`), by
            name; of a table its own. What is missing counts as the mean of training; a cell that
            is no number, or a category that was not learned, does with a warning in its row.
        processor (`RMatProcessor`, *optional*): Needed with a loaded model.
        revision (`str`, *optional*): Branch, tag or commit of a model on the Hub.
        batch_size (`int`, *optional*, defaults to 32):
            Most molecules in one forward pass, which takes molecules of similar sizes.
        num_workers (`int`, *optional*, defaults to 0): Processes that featurize.
        device (`str` or `torch.device`, *optional*): By default the loaded model's.
        cache_dir (`str` or `Path`, *optional*): Folder of a feature cache; by default none.

    Returns:
        [`Predictions`] with one row per molecule, of atoms an array of them; an invalid molecule
        has NaN, or `None`, and a reason. Of a table a copy with its index and columns, and behind
        them those of [`Predictions.to_columns`].

    Raises:
        TypeError: Molecules are another kind of table than one of pandas.
        ValueError: If a loaded model comes without its processor, or with a revision.
        UserError: The table has no such column, or one that the result adds, or the model has
            too few held-out rows for the coverage.

    Example:
    ```python
    >>> import pandas as pd
    >>> from rmat_hf import RMatProcessor, predict
    >>> from rmat_hf import RMatForSequenceClassification, checkpoint_path
    >>> model = RMatForSequenceClassification.from_pretrained(
    ...     checkpoint_path("rmat-small"), num_labels=1, problem_type="regression"
    ... )
    >>> processor = RMatProcessor(geometry="bounds")
    >>> result = predict(model, ["CCO", "C1CC"], processor=processor)
    >>> result.values.shape, result.errors[1]  # values in the units of the labels
    ((2, 1), "SMILES Parse Error: unclosed ring for input: 'C1CC'")
    >>> table = pd.DataFrame({"id": [7], "structure": ["CCO"]})
    >>> found = predict(model, table, smiles_column="structure", processor=processor)
    >>> list(found.columns)
    ['id', 'structure', 'prediction_LABEL_0', 'error']

    ```
    """
    predictor, used_processor = open_model(
        load_predictor, model, processor=processor, revision=revision, device=device
    )
    config, given = predictor.config, molecules
    molecules = require_list(molecules, smiles_column)
    options: dict[str, Any] = {"processor": used_processor, "batch_size": batch_size}
    options |= {"num_workers": num_workers, "cache_dir": cache_dir}
    if isinstance(predictor, RMatForTokenClassification):
        read = partial(_predict_atoms, predictor)
        rows, errors, _ = _run_batches(predictor, molecules, compute=read, **options)
        atoms = _arrange_atoms(rows, molecules, processor=used_processor)
        return _return_as(given, Predictions(atoms, errors, config))
    chosen = coverage if trust and find_trust(predictor) is not None else None
    validate_coverage(predictor, chosen)
    sizes = describe_blocks(predictor, coverage=chosen)
    beside = read_beside(config, given, covariates=covariates, num_rows=len(molecules))
    rows, errors, warnings = _run_batches(
        predictor,
        molecules,
        compute=lambda inputs: torch.cat(
            [*predict_blocks(predictor, inputs, coverage=chosen).values()], dim=1
        ),
        num_values=len(config.output_names),
        covariates=beside.values,
        trust=None if chosen is None else config.trust,
        **options,
    )
    values = _stack(rows, num_columns=sum(sizes.values()))
    blocks = np.split(values, np.cumsum([*sizes.values()])[:-1], axis=1)
    found: dict[str, Any] = dict(zip(sizes, blocks, strict=True))
    if chosen is not None:
        found["novelty"], found["warnings"] = found["novelty"][:, 0], warnings
    faults = {row: it for row, it in beside.faults.items() if errors[row] is None}
    warn_of_faults(faults, found.get("warnings"))
    return _return_as(given, Predictions(errors=errors, config=config, **found))


def find_beside(config: Any, given: Any, *, covariates: Any) -> dict[str, list[Any]]:
    """Return the cells of the covariates of a model, by name: those of a table, or the given.

    In a table other cells of a column may tell what the comma of `4,616` is; what is given as cells
    may be some rows of many, and is read as training read it, or not at all.
    """
    is_table = covariates is None and isinstance(given, pd.DataFrame)
    columns = given if is_table else ({} if covariates is None else covariates)
    found = {}
    for kind in [it for it in config.covariates or [] if it["name"] in columns]:
        cells = [None if it is None or it is pd.NA else it for it in columns[kind["name"]]]
        style = find_told_style(cells if is_table else (), usual=kind.get("commas") or "")
        known = {*(kind.get("categories") or [])}
        found[str(kind["name"])] = [
            it if str(it).strip() in known else rewrite_told_number(it, style) for it in cells
        ]
    return found


def drop_unread(config: Any, covariates: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Return the cells of covariates as they are read, nothing where they cannot be."""
    found = find_beside(config, None, covariates=covariates)
    for kind in [it for it in config.covariates or [] if it["name"] in found]:
        name, cells = str(kind["name"]), found[str(kind["name"])]
        unread = find_unread_covariates([kind], found, num_rows=len(cells))
        found[name] = [None if row in unread else it for row, it in enumerate(cells)]
    return found


def find_styles_beside(config: Any, table: Table) -> dict[str, str]:
    """Return what commas are in the columns of numbers that a model reads beside molecules.

    A table tells of all its rows at once, so that a cell is read alike in every chunk. Columns that
    it lacks are told.
    """
    names = [str(it["name"]) for it in config.covariates or []]
    if missing := [it for it in names if it not in table.column_names]:
        logger.warning(MISSING_COVARIATES, ", ".join(missing))
    usual = "decimal" if is_european(table.description) else ""
    kinds = [it for it in config.covariates or [] if it["name"] in table.column_names]
    numbers = {str(it["name"]): it for it in kinds if not it.get("categories")}
    return {
        name: find_told_style(cells, usual=numbers[name].get("commas") or usual)
        for name, cells in list_cells_with_commas(table, numbers).items()
    }


def read_covariates_of(table: Table, config: Any) -> dict[str, list[Any]]:
    """Return the cells of a table that a model reads beside molecules, as `rmat predict` does."""
    names = [str(it["name"]) for it in config.covariates or []]
    found: dict[str, list[Any]] = {name: [None] * table.num_rows for name in names}
    styles = find_styles_beside(config, table)
    if names := [it for it in names if it in table.column_names]:
        for name in names:
            found[name] = []
        for chunk in table.select(names).iterate_chunks(_ROWS_READ):
            for name, cells in chunk.columns.items():
                found[name] += rewrite_numbers(cells.to_pylist(), styles.get(name, ""))
    return find_beside(config, None, covariates=found)


class Beside(NamedTuple):
    """The covariates of rows, and by row the cells that the mean of training stands for."""

    values: np.ndarray | None
    faults: Mapping[int, str] = {}


def read_beside(config: Any, given: Any, *, covariates: Any, num_rows: int) -> Beside:
    """Return the covariates of a model that has some; warn of those that nobody gave."""
    if config.covariates is None:
        return Beside(None)
    kinds, known = config.covariates, find_beside(config, given, covariates=covariates)
    if missing := [it["name"] for it in kinds if it["name"] not in known]:
        logger.warning(
            MISSING_COVARIATES + " Give the columns, or covariates={name: cells}.",
            ", ".join(missing),
        )
    values = encode_covariates(kinds, known, num_rows=num_rows)
    return Beside(values, find_unread_covariates(kinds, known, num_rows=num_rows))


def warn_of_faults(faults: Mapping[int, str], warnings: list[str | None] | None = None) -> None:
    """Put what is wrong with covariates behind the warnings of their rows, or log it."""
    if warnings is not None:
        for row, fault in faults.items():
            warnings[row] = "; ".join(filter(None, [warnings[row], fault]))
    elif faults:
        row, fault = next(iter(faults.items()))
        number = say_count(len(faults), "row")
        logger.warning("%s with covariates not read, as row %d: %s.", number, row, fault)


def validate_coverage(model: Any, coverage: float | None) -> None:
    """Raise a `UserError` if a model of molecules has too few held-out rows for a coverage."""
    if coverage is None:
        return
    if not 0 < coverage < 1:
        raise UserError(f"coverage is {coverage}. Choose a share between 0 and 1, as 0.9.")
    trust = find_trust(model)
    if trust is not None and trust.is_regression:
        try:
            trust.find_quantiles(coverage)
        except ValueError as error:
            raise UserError(str(error)) from None


def embed(  # noqa: PLR0913 - the level, and what `predict` takes
    model: str | Path | RMatPreTrainedModel,
    molecules: Iterable[Molecule] | pd.DataFrame,
    *,
    smiles_column: str | None = None,
    level: str = "molecule",
    processor: RMatProcessor | None = None,
    revision: str | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    cache_dir: str | Path | None = None,
) -> Embeddings | pd.DataFrame:
    """Compute one vector per molecule, the `pooler_output`, or one per heavy atom.

    Padding takes no part in them.

    Args:
        model (`str`, `Path` or a loaded model): Folder, Hub id or model, with any head or none.
        level (`str`, *optional*, defaults to `"molecule"`): `"molecule"` or `"atom"`.
        molecules, smiles_column, processor, revision, batch_size, num_workers, device, cache_dir:
            As in [`predict`].

    Returns:
        [`Embeddings`] with one row per molecule, or one array of atoms in the order they were
        given; an invalid molecule has NaN, or `None`, and a reason. Of a table a copy with the
        columns `embedding_0`, `embedding_1` and so on, of atoms `embedding`, and `error`.

    Raises:
        TypeError, UserError: As in [`predict`].
        ValueError: As in [`predict`], or the model has no molecule vectors, but atoms only.

    Example:
    ```python
    >>> from rmat_hf import embed
    >>> embed("rmat-small", ["CCO", "c1ccccc1"]).values.shape
    (2, 512)
    >>> atoms = embed("rmat-small", ["OCC", "C1"], level="atom")
    >>> atoms.values[0].shape, atoms.values[1]  # O, C and C
    ((3, 128), None)

    ```
    """
    if level not in LEVELS:
        raise ValueError(f"level is {level!r}. Choose one of {', '.join(LEVELS)}.")
    load = partial(load_embedder, needs_pooling=level == "molecule")
    embedder, used_processor = open_model(
        load, model, processor=processor, revision=revision, device=device
    )
    encoder, given = embedder.base_model, molecules
    molecules = require_list(molecules, smiles_column)
    if level == "molecule" and encoder.pooler is None:
        raise ValueError("The model has vectors of atoms only. Pass level='atom'.")
    rows, errors, _ = _run_batches(
        encoder,
        molecules,
        processor=used_processor,
        compute=lambda inputs: encoder(**inputs, return_dict=True)[LEVELS[level]],
        batch_size=batch_size,
        num_workers=num_workers,
        cache_dir=cache_dir,
    )
    if level == "molecule":
        values = _stack(rows, num_columns=encoder.pooler.output_size)
        return _return_as(given, Embeddings(values.astype(np.float32), errors), is_wide=True)
    rows = [None if row is None else row.astype(np.float32) for row in rows]
    atoms = _arrange_atoms(rows, molecules, processor=used_processor)
    return _return_as(given, Embeddings(atoms, errors))


def _return_as(given: Any, result: Any, **options: Any) -> Any:
    """Return a result, of a table the table with the result's columns."""
    if not isinstance(given, pd.DataFrame):
        return result
    return add_columns(given, result.to_columns(**options))


def _arrange_atoms(
    rows: list[np.ndarray | None], molecules: list[Molecule], *, processor: RMatProcessor
) -> np.ndarray:
    """Return an array of objects: the rows of each molecule's atoms as it was given, or `None`."""
    arranged = np.full(len(rows), None, dtype=object)
    for idx, (row, molecule) in enumerate(zip(rows, molecules, strict=True)):
        if row is not None:
            arranged[idx] = restore_atom_order(row, molecule, processor=processor)
    return arranged


def _stack(rows: list[np.ndarray | None], *, num_columns: int) -> np.ndarray:
    missing = np.full(num_columns, np.nan)
    return np.array([missing if row is None else row for row in rows]).reshape(-1, num_columns)


def open_model(
    load: Callable[..., tuple[Any, RMatProcessor]],
    model: Any,
    *,
    processor: RMatProcessor | None,
    revision: str | None,
    device: str | torch.device | None,
) -> tuple[Any, RMatProcessor]:
    """Return the model and its processor, loaded with `load` unless they are given."""
    if isinstance(model, str | Path):
        model, processor = load(model, revision=revision, device=device)
        return model, limit_processor(processor)
    if revision is not None:
        raise ValueError(
            f"A loaded model takes no revision, but revision is {revision!r}. Leave it out, or "
            "pass the model's name."
        )
    if processor is None:
        raise ValueError(
            "A loaded model needs its processor, processor=AutoProcessor.from_pretrained(...). Or "
            "pass the model's name."
        )
    return model if device is None else model.to(device), processor


def limit_processor(processor: RMatProcessor, *, max_atoms: int | None = None) -> RMatProcessor:
    """Return the processor of a model, perhaps a stranger's, with the limits of who runs it.

    By default a molecule has at most as many heavy atoms as the processor takes, and 1,000.
    """
    limited = copy.copy(processor)
    limited.max_atoms = max_atoms or min(processor.max_atoms, MAX_ATOMS_BY_DEFAULT)
    limited.conformer_time_limit_s = min(processor.conformer_time_limit_s, MAX_TIME_LIMIT_S)
    return limited


def _run_batches(  # noqa: PLR0913 - what is computed of what, and how
    model: RMatPreTrainedModel,
    molecules: Iterable[Molecule],
    *,
    processor: RMatProcessor,
    compute: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    batch_size: int,
    num_workers: int,
    cache_dir: str | Path | None,
    num_values: int | None = None,
    trust: Mapping[str, Any] | None = None,
    covariates: np.ndarray | None = None,
) -> tuple[list[np.ndarray | None], list[str | None], list[str | None]]:
    """Return the numbers of each molecule, or of its atoms, in float64, or why there are none.

    And with a trust what a model that has it cannot see. The first `num_values` are finite.
    """
    processor = without_unread(processor, model)
    model.eval()
    rows = require_list(molecules)
    values: list[np.ndarray | None] = [None] * len(rows)
    errors: list[str | None] = []
    warnings: list[str | None] = []
    waiting: dict[int, bytes] = {}
    outcomes = iterate_featurized(rows, processor, num_workers=num_workers, cache_dir=cache_dir)
    with closing(outcomes):
        for outcome in outcomes:
            if not outcome.failure:
                waiting[len(errors)] = outcome.features
            errors.append(outcome.failure or None)
            warnings.append(None if trust is None else _find_warnings(outcome, trust))
            if len(waiting) < _BATCHES_GROUPED * batch_size and len(errors) < len(rows):
                continue
            indices = np.array(list(waiting))
            num_nodes = count_nodes(list(waiting.values()))
            for batch in group_by_length(num_nodes, batch_size=batch_size):
                features = {row: waiting[row] for row in indices[batch].tolist()}
                own: Any = {"device": model.device, "covariates": covariates}
                for row, output in _run_batch(features, compute=compute, **own):
                    if isinstance(output, str):
                        errors[row] = output
                    else:
                        values[row] = output
            waiting.clear()
    for row, numbers in enumerate(values):
        if numbers is not None and not np.isfinite(numbers[..., :num_values]).all():
            values[row], errors[row] = None, "the model's output is not a finite number"
    return values, errors, warnings


def _find_warnings(outcome: FeaturizedMolecule, trust: Mapping[str, Any]) -> str | None:
    if outcome.failure:
        return None
    features = unpack_features(outcome.features)
    known = features._replace(geometry_source=outcome.geometry_source)
    return "; ".join(list_warnings(known, trust)) or None


def without_unread(processor: RMatProcessor, model: RMatPreTrainedModel) -> RMatProcessor:
    """Return a processor that computes nothing that the model does not read."""
    processor = copy.copy(processor)
    if getattr(model, "descriptor_scaler", None) is None:
        processor.molecule_descriptors = None
    if not getattr(model, "reads_fingerprints", False):
        processor.fingerprints = None
    return processor


def require_list(
    molecules: Iterable[Molecule] | pd.DataFrame, smiles_column: str | None = None
) -> list[Molecule]:
    """Return molecules, or a column of a frame, as a list; a single one is refused."""
    if isinstance(molecules, pd.DataFrame):
        return list_molecules_of(molecules, smiles_column)
    if smiles_column is not None:
        raise TypeError("smiles_column is that of a pandas.DataFrame. Pass one, or leave it out.")
    single = isinstance(molecules, str | bytes | Chem.Mol)
    if single or not (isinstance(molecules, Iterable) or is_table(molecules)):
        raise TypeError("Pass a list of molecules, for example ['CCO'], or a pandas.DataFrame.")
    return list_molecules(molecules)


def _run_batch(
    features: dict[int, bytes],
    *,
    compute: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    device: torch.device,
    covariates: np.ndarray | None = None,
) -> Iterator[tuple[int, np.ndarray | str]]:
    """Yield the numbers of every row, or why it has none; a batch too large in two halves."""
    packed = list(features.values())
    try:
        arrays = expand_features(packed)
        append_covariates(arrays, None if covariates is None else covariates[list(features)])
        inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        with torch.inference_mode():
            outputs = compute(inputs).double().cpu().numpy()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        # of nodes, those of atoms: between the dummy node and padding
        sizes = count_nodes(packed) if outputs.ndim == 3 else [None] * len(packed)
        for row, numbers, size in zip(features, outputs, sizes, strict=True):
            yield row, numbers if size is None else numbers[1:size]
        return
    rows, half = list(features), len(features) // 2
    if half == 0:
        yield rows[0], f"{TOO_LARGE_FOR_MODEL} ({count_nodes(packed)[0] - 1} atoms)"
        return
    logger.warning("%d molecules at a time need more memory than there is.", len(rows))
    for part in (rows[:half], rows[half:]):
        features_of_part = {row: features[row] for row in part}
        known: Any = {"device": device, "covariates": covariates}
        yield from _run_batch(features_of_part, compute=compute, **known)


def _predict_atoms(
    model: RMatForTokenClassification, inputs: dict[str, torch.Tensor]
) -> torch.Tensor:
    logits = model(**inputs, return_dict=True).logits
    return compute_probabilities(logits, model.config.problem_type)
