"""Molecules in, properties or vectors out: the pipelines of transformers for R-MAT."""

import logging
import multiprocessing
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from itertools import islice
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.models.auto.modeling_auto import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.pipelines.base import Pipeline
from transformers.utils.logging import warning_once

from .covariates_rmat import encode_covariates
from .processing_rmat import DESCRIPTOR_INPUT, list_warnings
from .trust_rmat import DEFAULT_COVERAGE, describe_blocks, list_possible_classes, predict_blocks

logger = logging.getLogger(__name__)

# Output of the encoder that has one vector for each of them.
LEVELS = {"molecule": "pooler_output", "atom": "last_hidden_state"}


class RMatPipeline(Pipeline):
    """Featurizes molecules one by one and runs those that could be featurized as one batch.

    A molecule that cannot be featurized gives an entry with an error; the others go on.
    """

    # Name in `pipeline(...)`, key of a result, and the Auto class that loads the model.
    task_name: str
    result_name: str
    auto_class: Any

    # transformers declares these for its own classes only
    model: Any
    feature_extractor: Any
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = True
    _load_tokenizer: Any = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model.eval()

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the result of one molecule, or one result per molecule of several.

        Args:
            inputs (`str`, `Chem.Mol` or an iterable of them):
                A generator or a torch data set gives a generator, anything else a list.
            args, kwargs: `batch_size` and `num_workers`, as in [`Pipeline`]. Where Python forks no
                workers (Windows, macOS, from 3.14 on Linux too) batches are made without them.
        """
        # transformers would take a tuple or a column of a data set for one molecule
        other = (str, bytes, Mapping, GeneratorType, Dataset)
        if isinstance(inputs, Iterable) and not isinstance(inputs, other):
            inputs = list(inputs)
            if not inputs:
                return []
        return super().__call__(inputs, *args, **kwargs)

    def get_iterator(self, inputs: Any, num_workers: int, *args: Any) -> Any:
        """Pass the rows through the pipeline; `args` begin with `batch_size`."""
        # the collator of transformers is a closure, which no other process can be sent
        if args[0] > 1 and multiprocessing.get_start_method() != "fork":
            num_workers = 0
        return super().get_iterator(inputs, num_workers, *args)

    def _sanitize_parameters(
        self, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if kwargs:
            raise TypeError(f"{type(self).__name__} takes no option {next(iter(kwargs))!r}.")
        return {}, {}, {}

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:
        """Return the features of one molecule, a SMILES or `Chem.Mol`, or why it has none.

        Covariates stand beside the molecule: `{"smiles": "CCO", "pH": 7.4}`.
        """
        kinds, cells = getattr(self.model.config, "covariates", None), {}
        # CODEPATH: models finetuned with `--feature-columns`.
        if kinds is not None and isinstance(input_, Mapping):
            input_, cells = input_.get("smiles"), {name: [it] for name, it in input_.items()}
        batch = self.feature_extractor([input_], errors="skip", padding=False)
        if batch.skipped_rows:
            return {"features": None, "error": batch.skipped_rows[0], "warning": None}
        warnings = list_warnings(batch.compact_features[0], self.model.config.trust or {})
        features = {name: values[0] for name, values in batch.items()}
        # CODEPATH: as above.
        if kinds is not None:
            own = encode_covariates(kinds, cells, num_rows=1)[0]
            before = features.get(DESCRIPTOR_INPUT, own[:0])
            features[DESCRIPTOR_INPUT] = np.concatenate([before, own])
        return {"features": features, "error": None, "warning": "; ".join(warnings) or None}

    def _forward(self, input_tensors: dict[str, Any], **forward_parameters: Any) -> Any:
        names = ("features", "error", "warning")
        features, errors, warnings = (input_tensors[name] for name in names)
        if not isinstance(features, list):  # without a batch the collator makes no lists
            features, errors, warnings = [features], [errors], [warnings]
        known = [row for row, row_features in enumerate(features) if row_features is not None]
        rows, num_nodes = torch.zeros(len(features), 1), torch.zeros(len(features)).long()
        if known:
            batch = self.feature_extractor.pad(
                [features[row] for row in known], return_tensors="pt"
            )
            inputs = self._ensure_tensor_on_device(dict(batch), device=self.device)
            computed = self.compute_rows(inputs, **forward_parameters).float()
            rows = computed.new_zeros(len(features), *computed.shape[1:])
            rows[known] = computed
            num_nodes[known] = batch["attention_mask"].sum(1)
        return {"rows": rows, "num_nodes": num_nodes, "error": errors, "warning": warnings}

    @abstractmethod
    def compute_rows(self, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
        """Return the numbers of every molecule, `(batch_size, num_columns)`, or of every node."""

    @abstractmethod
    def describe_row(self, row: list[float], **options: Any) -> Any:
        """Return the numbers of one molecule or atom as users see them."""

    def postprocess(self, model_outputs: Any, **postprocess_parameters: Any) -> dict[str, Any]:
        """Return what is known of one molecule, or its error."""
        error = model_outputs["error"]
        error = error[0] if isinstance(error, list) else error
        if error:
            return {self.result_name: None, "error": error}
        rows, num_nodes = model_outputs["rows"][0], model_outputs["num_nodes"][0]
        if rows.ndim > 1:
            atoms = [self.describe_row(row) for row in rows[1:num_nodes].tolist()]
            return {self.result_name: atoms, "error": None}
        warning = model_outputs["warning"]
        known = self.describe_molecule(rows.tolist(), **postprocess_parameters)
        if known:
            known["warning"] = warning[0] if isinstance(warning, list) else warning
        result = self.describe_row(rows.tolist(), **postprocess_parameters)
        return {self.result_name: result, **known, "error": None}

    def describe_molecule(self, row: list[float], **options: Any) -> dict[str, Any]:
        """Return what is known of a molecule beside its result; by default nothing."""
        return {}


class RMatPropertyPredictionPipeline(RMatPipeline):
    """Predict molecule properties, with label names, units and probabilities.

    Without a task, `pipeline(model=...)` takes the one that the model was saved for. Where this
    package is not imported, the code in the folder does the same with `trust_remote_code=True`.

    Of a saved model: `pipeline("molecule-property-prediction", model="path or id")`. A regression
    gives `value`, with its `unit`, a classification `score`, a probability. An ensemble adds
    `spread`, the standard deviation of its members' predictions, a regression with a kernel head
    the standard deviation of its Gaussian process.

    A model that knows its errors adds the interval `lower` to `upper`, or a calibrated
    `probability` and the conformal `set` (of classes of one label `is_possible`), and of the
    molecule `novelty`, `nearest_train`, `in_domain` and `warning`, as [`predict`]. A call takes
    `coverage`, and `trust=False` leaves them out.

    Args:
        model ([`RMatForSequenceClassification`] or an ensemble): Finetuned.
        feature_extractor ([`RMatProcessor`]): Saved with it.
        kwargs: `device`, `batch_size` and others, as in [`Pipeline`].

    Raises:
        TypeError: There is no such option. A molecule that has no features raises nothing: its
            entry has an `error`.
        ValueError: The model was pretrained only, its head would be random.

    Example:
    ```python
    >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    >>> config = RMatConfig(**sizes, id2label={0: "dG"}, label_units=["kcal/mol"])
    >>> model, processor = RMatForSequenceClassification(config), RMatProcessor(geometry="bounds")
    >>> pipe = RMatPropertyPredictionPipeline(model, feature_extractor=processor)
    >>> good, bad = pipe(["CCO", "C1CC"], batch_size=2)
    >>> good["predictions"]
    [{'label': 'dG', 'value': ..., 'unit': 'kcal/mol'}]
    >>> bad["error"]
    "SMILES Parse Error: unclosed ring for input: 'C1CC'"

    ```
    """

    task_name = "molecule-property-prediction"
    result_name = "predictions"
    auto_class: Any = AutoModelForSequenceClassification

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The classes of the files, of a model built in this process none; an adapter brings its
        # head. A bias that can learn is zero until it does.
        has_adapter = getattr(self.model, "_hf_peft_config_loaded", False)
        saved = None if has_adapter else self.model.config.architectures
        own = type(self.model).__name__
        named = [it for it in self.model.named_parameters() if it[1].requires_grad]
        biases = [it for name, it in named if "classifier." in name and name.endswith("bias")]
        if saved and own not in saved and biases and not any(it.any() for it in biases):
            raise ValueError(
                f"The model {self.model.name_or_path!r} is a {saved[0]} and has no trained "
                "classifier: the output would be random. Finetune it first (rmat finetune --model "
                "...); its vectors are those of the task 'molecule-feature-extraction'."
            )

    def _sanitize_parameters(
        self, coverage: float = DEFAULT_COVERAGE, trust: bool = True, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        super()._sanitize_parameters(**kwargs)
        chosen = {"coverage": coverage if trust else None}
        return {}, chosen, chosen

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:
        """Do as [`RMatPipeline.preprocess`], and warn of covariates that a molecule comes without.

        Args:
            input_, preprocess_parameters: As there.
        """
        known = input_ if isinstance(input_, Mapping) else {}
        names = [it["name"] for it in getattr(self.model.config, "covariates", None) or []]
        if missing := [name for name in names if name not in known]:
            warning_once(
                logger,
                "%s: the model was trained with it, and the mean of training stands for it. Pass "
                'it beside the molecule: {"smiles": ..., "%s": ...}.',
                ", ".join(missing),
                missing[0],
            )
        return super().preprocess(input_, **preprocess_parameters)

    def compute_rows(
        self,
        inputs: dict[str, torch.Tensor],
        coverage: float | None = DEFAULT_COVERAGE,
        **options: Any,
    ) -> torch.Tensor:
        """Return values or probabilities, followed by spreads and trust if there are any."""
        return torch.cat([*predict_blocks(self.model, inputs, coverage=coverage).values()], dim=-1)

    def _split(self, row: list[float], coverage: float | None) -> dict[str, list[float]]:
        rest = iter(row)
        sizes = describe_blocks(self.model, coverage=coverage)
        return {name: list(islice(rest, size)) for name, size in sizes.items()}

    def describe_molecule(
        self, row: list[float], coverage: float | None = DEFAULT_COVERAGE, **options: Any
    ) -> dict[str, Any]:
        """Return how new a molecule is, of a model that knows."""
        blocks = self._split(row, coverage)
        if "novelty" not in blocks:
            return {}
        (novelty,), trust = blocks["novelty"], self.model.config.trust
        # CODEPATH: fingerprints have a similarity, centers have none.
        nearest = {"nearest_train": 1 - novelty} if trust["kind"] == "fingerprints" else {}
        return {"novelty": novelty, **nearest, "in_domain": novelty <= trust["threshold"]}

    def describe_row(
        self, row: list[float], coverage: float | None = DEFAULT_COVERAGE, **options: Any
    ) -> list[dict[str, Any]]:
        """Return the predictions of one molecule or atom, one for each label or class."""
        config = self.model.config
        units = config.label_units or [None] * len(config.output_names)
        blocks = self._split(row, coverage)
        # CODEPATH: labels of their own have a set each, the classes of one label share theirs.
        is_shared = config.label_name is not None
        possible = blocks.pop("is_possible", [])
        sets = list_possible_classes(config, possible) if possible else {}
        names = {"probabilities": "probability"}
        predictions = []
        for idx, (label, kind) in enumerate(zip(config.output_names, config.types, strict=True)):
            name = "value" if kind == "regression" else "score"
            prediction = {"label": label, name: blocks["values"][idx]}
            if kind == "regression":
                prediction["unit"] = units[idx]
            others = (name for name in blocks if name not in ("values", "novelty"))
            prediction |= {names.get(name, name): blocks[name][idx] for name in others}
            if possible:
                known = label in sets[config.label_name] if is_shared else sets[label]
                prediction["is_possible" if is_shared else "set"] = known
            predictions.append(prediction)
        return predictions


class RMatAtomPropertyPredictionPipeline(RMatPropertyPredictionPipeline):
    """Predict properties of every heavy atom, in the order of the SMILES or RDKit molecule.

    Of a saved model: `pipeline("atom-property-prediction", model="path or id")`.

    Args:
        model ([`RMatForTokenClassification`]): Finetuned.
        feature_extractor, kwargs: As in [`RMatPropertyPredictionPipeline`].

    Raises:
        TypeError, ValueError: As in [`RMatPropertyPredictionPipeline`].

    Example:
    ```python
    >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    >>> config = RMatConfig(**sizes, id2label={0: "charge"}, label_units=["e"])
    >>> model, processor = RMatForTokenClassification(config), RMatProcessor(geometry="bounds")
    >>> pipe = RMatAtomPropertyPredictionPipeline(model, feature_extractor=processor)
    >>> carbon, oxygen = pipe("CO")["predictions"]
    >>> oxygen
    [{'label': 'charge', 'value': ..., 'unit': 'e'}]

    ```
    """

    task_name = "atom-property-prediction"
    auto_class = AutoModelForTokenClassification


class RMatFeatureExtractionPipeline(RMatPipeline):
    """Compute one vector per molecule, the `pooler_output`, or with `level="atom"` one per atom.

    Of a saved model: `pipeline("molecule-feature-extraction", model="path or id")`.

    Args:
        model ([`RMatModel`]): Or a network with a head. Of a kernel head or a stack it is
            `RMatModel.from_pretrained(folder)`; its name alone is one for [`embed`].
        feature_extractor ([`RMatProcessor`]): Saved with it.
        kwargs: `device`, `batch_size` and others, as in [`Pipeline`].

    Raises:
        TypeError: There is no such option.
        ValueError: There is no such level. A molecule that has no features raises nothing: its
            entry has an `error`.

    Example:
    ```python
    >>> path = checkpoint_path("rmat-small")
    >>> model, processor = RMatModel.from_pretrained(path), RMatProcessor.from_pretrained(path)
    >>> pipe = RMatFeatureExtractionPipeline(model, feature_extractor=processor)
    >>> good, bad = pipe(["CCO", "C1CC"], batch_size=2)
    >>> len(good["embedding"])  # output_size numbers
    512
    >>> bad["embedding"] is None, bad["error"]
    (True, "SMILES Parse Error: unclosed ring for input: 'C1CC'")
    >>> len(pipe("CO", level="atom")["embedding"])  # C and O, as the SMILES names them
    2

    ```
    """

    task_name = "molecule-feature-extraction"
    result_name = "embedding"
    auto_class = AutoModel

    def _sanitize_parameters(
        self, level: str | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        super()._sanitize_parameters(**kwargs)
        if level not in (None, *LEVELS):
            raise ValueError(f"level is {level!r}. Choose one of {', '.join(LEVELS)}.")
        return {}, {} if level is None else {"level": level}, {}

    def compute_rows(
        self, inputs: dict[str, torch.Tensor], level: str = "molecule", **options: Any
    ) -> torch.Tensor:
        """Return the vectors of molecules, or of nodes."""
        return getattr(self.model.base_model(**inputs, return_dict=True), LEVELS[level])

    def describe_row(self, row: list[float], **options: Any) -> list[float]:
        """Return the vector of one molecule or atom."""
        return row


def describe_pipeline(model_class: str) -> dict[str, dict[str, Any]]:
    """Return the `custom_pipelines` of a model: one, so that `pipeline(model=...)` knows it."""
    pipeline_class: type[RMatPipeline] = RMatFeatureExtractionPipeline
    if model_class.endswith("ForSequenceClassification"):
        pipeline_class = RMatPropertyPredictionPipeline
    elif model_class.endswith("ForTokenClassification"):
        pipeline_class = RMatAtomPropertyPredictionPipeline
    return {
        pipeline_class.task_name: {
            "impl": f"pipeline_rmat.{pipeline_class.__name__}",
            "pt": [pipeline_class.auto_class.__name__],
        }
    }
