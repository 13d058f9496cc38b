"""R-MAT as scikit-learn has it: molecules in, `fit`, `predict` and `transform`."""

import math
import tempfile
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from rmat_hf.data.featurization import choose_cache_dir
from rmat_hf.data.frames import list_molecules_of
from rmat_hf.data.splits.registry import split_dataset
from rmat_hf.data.table_writer import Predictions
from rmat_hf.data.training_table import featurize_dataset
from rmat_hf.flags import DEFAULT_CACHE
from rmat_hf.inference.prediction import embed, name_components, predict, require_list
from rmat_hf.loading import load_embedder, load_processor, read_checkpoint
from rmat_hf.model.configuration_rmat import FOREST_FINGERPRINT
from rmat_hf.model.features_rmat import FINGERPRINTS, list_molecule_descriptor_names
from rmat_hf.training.kernel_head import fit_kernel_head
from rmat_hf.training.recipe import RMatTrainingArguments, load_for_finetuning
from rmat_hf.training.stack_head import fit_stack_head
from rmat_hf.training.trainer import RMatTrainer

DEFAULT_FEATURES = ("vectors", "ecfp4", "fcfp4", "atom_pairs")
_FITS: dict[str, Any] = {"kernel": fit_kernel_head, "stack": fit_stack_head}
# Of train, valid and test, of which the last chooses the epoch.
_SHARES = (0.9, 0.0, 0.1)


class _RMatInputMixin:
    """Molecules as scikit-learn hands them on: a list, a column, or a table with one."""

    smiles_column: str | None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]  # that of BaseEstimator
        tags.input_tags.one_d_array = tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: of a model its configuration and weights."""
        own: Any = super().__getstate__()
        state = dict(own)
        if "model_" in state:
            model = state["model_"]
            state["model_"] = (type(model), model.config, model.state_dict())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was pickled."""
        state = dict(state)
        if "model_" in state:
            model_class, config, weights = state["model_"]
            state["model_"] = model_class(config).eval()
            state["model_"].load_state_dict(weights)
        super().__setstate__(state)  # type: ignore[misc]  # that of BaseEstimator

    def _list_molecules(self, molecules: Any) -> list[Any]:
        if isinstance(molecules, pd.DataFrame):
            only = str(molecules.columns[0]) if molecules.shape[1] == 1 else None
            return list_molecules_of(molecules, self.smiles_column or only)
        rows: list[Any] = require_list(molecules)
        if rows and isinstance(rows[0], np.ndarray | list | tuple):
            if any(len(row) != 1 for row in rows):
                raise ValueError(
                    f"X has {len(rows[0])} columns. Give the molecules: a list or column of SMILES "
                    "or RDKit molecules, or a pandas.DataFrame with smiles_column."
                )
            return [row[0] for row in rows]
        return rows


class _RMatPredictor(_RMatInputMixin, BaseEstimator):
    """What regressor and classifier share."""

    def __init__(
        self,
        model: str = "rmat-small",
        *,
        head: str = "kernel",
        kernel_features: Sequence[str] = DEFAULT_FEATURES,
        num_train_epochs: float | None = None,
        smiles_column: str | None = None,
        feature_cache: str | None = DEFAULT_CACHE,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.head = head
        self.kernel_features = kernel_features
        self.num_train_epochs = num_train_epochs
        self.smiles_column = smiles_column
        self.feature_cache = feature_cache
        self.random_state = random_state

    def _build_processor(self) -> Any:
        features = [*self.kernel_features]
        options: dict[str, Any] = {"fingerprints": None, "molecule_descriptors": None}
        if self.head in _FITS:
            counted = [name for name in features if name in FINGERPRINTS]
            if self.head == "stack" and FOREST_FINGERPRINT not in counted:
                counted.append(FOREST_FINGERPRINT)
            options["fingerprints"] = counted or None
        if self.head == "stack" or (self.head in _FITS and "descriptors" in features):
            options["molecule_descriptors"] = list_molecule_descriptor_names()
        return load_processor(read_checkpoint(self.model).name, **options)

    def _fit(self, molecules: Any, labels: np.ndarray, *, weights: Any, problem_type: str) -> None:
        if self.head not in (*_FITS, "network"):
            raise ValueError(f"head is {self.head!r}. Choose one of {[*_FITS, 'network']}.")
        table = pd.DataFrame({"smiles": self._list_molecules(molecules)})
        names = [f"label_{idx}" for idx in range(labels.shape[1])]
        table[names] = labels
        if len(table) != len(labels):
            raise ValueError(f"There are {len(table)} molecules and {len(labels)} labels.")
        options: dict[str, Any] = {"label_columns": names, "problem_type": problem_type}
        beside: dict[str, Any] = {}
        if weights is not None:
            table["sample_weight"] = np.asarray(weights, dtype=np.float64)
            beside["weight_column"] = "sample_weight"
        self.processor_ = self._build_processor()
        rows = featurize_dataset(
            datasets.Dataset.from_pandas(table, preserve_index=False),
            self.processor_,
            # every row is one of those that were given, whatever others say
            conflict_tolerance=math.inf,
            cache_dir=choose_cache_dir(self.feature_cache),
            **options,
            **beside,
        )
        seed = int(self.random_state or 0)
        if self.head in _FITS:
            options |= {"kernel_features": [*self.kernel_features], "seed": seed}
            self.model_ = _FITS[self.head](self.model, rows, **options)
            return
        self.model_ = self._train(rows, seed=seed, options=options)

    def _train(self, rows: datasets.Dataset, *, seed: int, options: dict[str, Any]) -> Any:
        """Train the network, its epoch chosen on a tenth of the rows."""
        parts = split_dataset(rows, "random", seed=seed, fractions=_SHARES)
        network = load_for_finetuning(self.model, parts["train"], seed=seed, **options)
        with tempfile.TemporaryDirectory() as folder:
            fields: dict[str, Any] = {"seed": seed, "disable_tqdm": True}
            if self.num_train_epochs is not None:
                fields["num_train_epochs"] = self.num_train_epochs
            trainer = RMatTrainer(
                model=network,
                args=RMatTrainingArguments(folder, **fields),
                train_dataset=parts["train"],
                eval_dataset=parts["test"],
                processing_class=self.processor_,
            )
            trainer.train()
        return network.cpu().eval()

    def _predict(self, molecules: Any) -> Predictions:
        check_is_fitted(self, "model_")
        rows = self._list_molecules(molecules)
        cache_dir = choose_cache_dir(self.feature_cache)
        with torch.inference_mode():
            return predict(self.model_, rows, processor=self.processor_, cache_dir=cache_dir)


class RMatRegressor(RegressorMixin, _RMatPredictor):
    """A regressor of scikit-learn: molecules in, numbers out.

    It goes into pipelines, `cross_val_score` and `GridSearchCV`. What it learns is kept in memory.

    Args:
        model (`str`, *optional*, defaults to `"rmat-small"`):
            Pretrained: folder, Hub id, or a name of [`list_checkpoints`].
        head (`str`, *optional*, defaults to `"kernel"`):
            `"kernel"`, fitted in seconds, `"stack"`, a kernel head and a forest, or `"network"`,
            which is trained for minutes, a tenth of the rows choosing its epoch.
        kernel_features (`Sequence[str]`, *optional*): As `--kernel-features` of `rmat finetune`.
        num_train_epochs (`float`, *optional*): Of the network; by default the recipe's.
        smiles_column (`str`, *optional*): Where `X` is a table; its only column needs no name.
        feature_cache (`str`, *optional*): Folder that keeps features for other folds, or `"none"`.
        random_state (`int`, *optional*, defaults to 0): Of whatever is drawn.

    Raises:
        ValueError: `X` holds no molecules, lengths differ, or there is no such head.
        UserError: As of [`fit_kernel_head`].

    Example:
    ```python
    >>> from sklearn.model_selection import cross_val_score
    >>> from rmat_hf import RMatRegressor
    >>> smiles, sizes = ["C" * n for n in range(1, 31)], range(1, 31)
    >>> regressor = RMatRegressor(kernel_features=["ecfp4"], feature_cache="none")
    >>> cross_val_score(regressor, smiles, sizes, cv=3).shape
    (3,)
    >>> regressor.fit(smiles, sizes).predict(["CCCC", "C1"]).shape  # NaN of what is no molecule
    (2,)

    ```
    """

    def fit(self, X: Any, y: Any, *, sample_weight: Any = None) -> "RMatRegressor":  # noqa: N803 - as scikit-learn has it
        """Learn labels `(num_molecules,)` or `(num_molecules, num_labels)`.

        Args:
            X: SMILES or RDKit molecules, or a table with them; those that are none are left out.
            y: Numbers, NaN where missing; text as `">10"` is a bound.
            sample_weight: What each row counts.
        """
        labels = np.asarray(y)
        self.num_axes_ = labels.ndim
        columns = labels.reshape(len(labels), -1)
        self._fit(X, columns, weights=sample_weight, problem_type="regression")
        return self

    def predict(self, X: Any, *, return_std: bool = False) -> Any:  # noqa: N803 - as scikit-learn has it
        """Return predictions of the shape of the labels, and their standard deviations if asked.

        Args:
            X: As of [`fit`]; what is no molecule has NaN.
            return_std: Whether the second is returned, of the heads kernel and stack.
        """
        found = self._predict(X)
        if return_std and found.spread is None:
            raise ValueError("The head network has no standard deviation. Use kernel or stack.")
        shown: list[Any] = [found.values, found.spread] if return_std else [found.values]
        if self.num_axes_ == 1:
            shown = [it.ravel() for it in shown]
        return tuple(shown) if return_std else shown[0]


class RMatClassifier(ClassifierMixin, _RMatPredictor):
    """A classifier of scikit-learn: molecules in, classes and their probabilities out.

    Args:
        model, head, kernel_features, num_train_epochs, smiles_column, feature_cache, random_state:
            As of [`RMatRegressor`].

    Raises:
        ValueError: As of [`RMatRegressor`]; there is one class only, or a row that is to be
            predicted is no molecule.

    Example:
    ```python
    >>> from rmat_hf import RMatClassifier
    >>> smiles = ["C" * n for n in range(1, 11)] + ["C" * n + "O" for n in range(1, 11)]
    >>> classifier = RMatClassifier(kernel_features=["ecfp4"], feature_cache="none")
    >>> classifier = classifier.fit(smiles, ["alkane"] * 10 + ["alcohol"] * 10)
    >>> classifier.predict(["CCCCO", "CCCC"]).tolist()
    ['alcohol', 'alkane']
    >>> classifier.predict_proba(["CCCCO"]).shape  # in the order of `classes_`
    (1, 2)

    ```
    """

    def fit(self, X: Any, y: Any) -> "RMatClassifier":  # noqa: N803 - as scikit-learn has it
        """Learn classes `(num_molecules,)`, words or numbers.

        Args:
            X: As of [`RMatRegressor.fit`].
            y: One class for each molecule, NaN or `None` where missing.
        """
        given = np.asarray(y)
        if given.ndim > 1 and given.shape[1:] != (1,):
            raise ValueError(
                f"y has the shape {given.shape}. Give one class for each molecule; several labels "
                "are a classifier each, or label_columns of finetune(...)."
            )
        given = given.reshape(-1, 1)
        is_known = pd.notna(given)
        known = given[is_known]
        # what pandas has beside missing cells comes as objects
        known = np.array(known.tolist()) if known.dtype == object else known
        self.classes_, codes = np.unique(known, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has the class {self.classes_.tolist()} only. Give two or more.")
        labels = np.full(given.shape, None, dtype=object)
        labels[is_known] = codes
        self._fit(X, labels, weights=None, problem_type="single_label_classification")
        # without those of which no row has a molecule
        self.classes_ = self.classes_[[int(it) for it in self.model_.config.output_names]]
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803 - as scikit-learn has it
        """Return the probability of each class, `(num_molecules, num_classes)`.

        Args:
            X: As of [`fit`]; what is no molecule has NaN.
        """
        return self._predict(X).values

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803 - as scikit-learn has it
        """Return the most probable class of each molecule.

        Args:
            X: As of [`fit`].
        """
        found = self._predict(X)
        if faults := [(row, it) for row, it in enumerate(found.errors) if it]:
            raise ValueError(
                f"{len(faults)} rows have no prediction, the first is row {faults[0][0]}: "
                f"{faults[0][1]}. Leave them out, or use predict_proba, which has NaN there."
            )
        return np.asarray(self.classes_[found.values.argmax(axis=1)])


class RMatTransformer(_RMatInputMixin, TransformerMixin, BaseEstimator):
    """A transformer of scikit-learn: molecules in, the vectors of a pretrained encoder out.

    Nothing is learned, so that vectors of one fold know nothing of another, and [`fit`] may be left
    out.

    Args:
        model (`str`, *optional*, defaults to `"rmat-small"`): As of [`embed`].
        smiles_column, feature_cache: As of [`RMatRegressor`].

    Raises:
        ValueError: `X` holds no molecules.

    Example:
    ```python
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.pipeline import make_pipeline
    >>> from rmat_hf import RMatTransformer
    >>> smiles = ["C" * n for n in range(1, 11)]
    >>> pipeline = make_pipeline(RMatTransformer(feature_cache="none"), Ridge())
    >>> pipeline.fit(smiles, range(10)).predict(["CCCC"]).shape
    (1,)

    ```
    """

    def __init__(
        self,
        model: str = "rmat-small",
        *,
        smiles_column: str | None = None,
        feature_cache: str | None = DEFAULT_CACHE,
    ) -> None:
        self.model = model
        self.smiles_column = smiles_column
        self.feature_cache = feature_cache

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags

    def fit(self, X: Any, y: Any = None) -> "RMatTransformer":  # noqa: N803 - as scikit-learn has it
        """Load the encoder, so that [`transform`] need not each time; nothing is learned.

        Args:
            X, y: Not read.
        """
        self.model_, self.processor_ = load_embedder(self.model, needs_pooling=True)
        return self

    def _load(self) -> tuple[Any, Any]:
        if hasattr(self, "model_"):
            return self.model_, self.processor_
        return load_embedder(self.model, needs_pooling=True)

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803 - as scikit-learn has it
        """Return vectors `(num_molecules, pooled_size)`, NaN of what is no molecule.

        Args:
            X: As of [`RMatRegressor.fit`].
        """
        cache_dir = choose_cache_dir(self.feature_cache)
        rows = self._list_molecules(X)
        model, processor = self._load()
        return embed(model, rows, processor=processor, cache_dir=cache_dir).values

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns, `embedding_0` and so on.

        Args:
            input_features: Not read.
        """
        encoder: Any = self._load()[0].base_model
        names = name_components(range(encoder.pooler.output_size))
        return np.array([*names], dtype=object)


__all__ = ["RMatClassifier", "RMatRegressor", "RMatTransformer"]
