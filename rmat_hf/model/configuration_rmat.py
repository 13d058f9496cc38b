"""RMatConfig: every architecture choice of R-MAT, and the codes that model and featurizer share."""

import difflib
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields
from typing import Any, Literal

from huggingface_hub.dataclasses import as_validated_field, strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils.type_validators import activation_fn_key, interval

logger = logging.getLogger(__name__)

# Columns of `node_features`; the atom features follow them.
MASK_COLUMN = 0
DUMMY_COLUMN = 1
DUMMY_NODE_IDX = 0

# `bond_types` of a bonded pair: 1 + 8 * order + 4 * aromatic + 2 * conjugated + in_ring,
# order in (single, aromatic, double, triple).
NO_BOND_TYPE = 0
NUM_BOND_ORDERS = 4
MASKED_BOND_TYPE = 1 + 8 * NUM_BOND_ORDERS
NUM_BOND_TYPES = MASKED_BOND_TYPE + 1
NUM_BOND_FEATURES = 1 + NUM_BOND_ORDERS + 3

# `topological_distances` between unconnected nodes; a real distance is at most one less.
UNREACHABLE_DISTANCE = 255

# Columns of `fingerprint_counts` of each fingerprint.
FINGERPRINT_SIZE = 2048
# Kinds of atoms after a layer, and layers that a kernel head looks at: as many columns together.
NUM_ENVIRONMENTS = 512
MAX_ENVIRONMENT_LAYERS = FINGERPRINT_SIZE // NUM_ENVIRONMENTS

# What a model keeps of the molecules of training, to tell how new others are: hashed environments,
# or centers of its own vectors, from which no molecule can be told.
TRUST_KINDS = ("fingerprints", "centers")

# Å; outside every cutoff, so that the radial basis of the pair is zero.
BEYOND_CUTOFF = 1.0e6

# What may be known about a pair, in the order of the pair features: the fields with their numbers.
PAIR_RELATIONS = {
    "bond": "num_bond_features",
    "neighborhood": "num_neighborhood_orders",
    "distance": "num_radial_basis",
}
# Where it may come in: the bias on the keys, which the scores have, and that on the values.
PAIR_TERMS = ("keys", "values")

# Fields that belong to the labels a model was finetuned on.
TASK_FIELDS = (
    "num_molecule_descriptors",
    "covariates",
    "label_mean",
    "label_std",
    "label_units",
    "label_name",
    "label_types",
    "label_transforms",
    "loss",
    "loss_weights",
    "trust",
)
# Those among them, and of transformers, that other labels do not inherit.
LABEL_FIELDS = (*TASK_FIELDS[1:], "id2label", "label2id", "num_labels")
# What transformers saves beside the fields of a configuration class.
SAVED_KEYS = (
    *("model_type", "_name_or_path", "auto_map", "custom_pipelines", "num_labels", "torch_dtype"),
    *("output_attentions", "quantization_config", "tie_word_embeddings", "use_cache"),
)
FLOAT_TYPES = ("float16", "bfloat16", "float32", "float64")


def bounded(
    least: float = -sys.float_info.max, most: float = sys.float_info.max
) -> Callable[..., Any]:
    """Return a field like that of `interval`, for a number, `None` or a list; never infinite."""

    @as_validated_field
    def validate(value: float | list[float] | None) -> None:
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if not all(least <= number <= most for number in numbers):
            raise ValueError(f"Numbers must be finite, from {least} to {most}, got {value}.")

    return validate


def chosen_from(known: Iterable[str], *, least: int = 0) -> Callable[..., Any]:
    """Return a field for a list of so many names at least, each a known one and there once."""

    @as_validated_field
    def validate(value: list[str] | tuple[str, ...]) -> None:
        if not least <= len(value) == len({*value} & {*known}):
            raise ValueError(f"Choose {least} or more of {list(known)}, each once, got {value}.")

    return validate


class RMatRegisteredPipelines(dict[str, Any]):
    """The `custom_pipelines` of a model, where the installed pipelines are to be used.

    `transformers.pipeline` reads them twice. Their only key is the task of a model that is named
    without one, so the field has to stay. Then `task in custom_pipelines` decides between the code
    of the folder, with `trust_remote_code=True`, and `PIPELINE_REGISTRY`, which has the classes of
    the package. There is no option for it: answering no chooses the registry.
    """

    def __contains__(self, task: object) -> bool:
        return False


@strict
class RMatConfig(PreTrainedConfig):
    r"""Configuration of the Relative Molecule Attention Transformer (arXiv 2110.05841).

    Types, limits and defaults, the sizes of the published model (48 million parameters), stand with
    the fields below.

    Args:
        num_node_features: Columns of `node_features`: mask flag, dummy flag, 35 atom features.
        num_bond_features: Mask flag and 7 bond features.
        max_neighborhood_order: Shortest paths of this many bonds and more share one class. One
            more class stands for unreachable, so there are `max_neighborhood_order + 2`.
        num_radial_basis: Radial basis functions.
        distance_cutoff: Distance in Å from which on the radial basis is zero.
        radial_envelope_exponent: arXiv 2003.03123, eq. 8.
        hidden_size: Width of the nodes.
        intermediate_size: Width of the feed-forward networks.
        num_hidden_layers: Number of layers.
        num_attention_heads: Divides `hidden_size`. The hidden layer of the pair networks is as wide
            as one head.
        hidden_act: Activation of feed-forward and pair networks and of heads of several layers.
        leaky_relu_slope: Negative slope of `"leaky_relu"`.
        feed_forward_act: Activation of the feed-forward networks; by default `hidden_act`. Beside
            the names of transformers `"elu"` and `"selu"`.
        num_feed_forward_layers: Linear layers of a feed-forward network. One alone is followed by
            the activation.
        hidden_dropout_prob: Dropout in feed-forward and pair networks and on residual branches.
        attention_probs_dropout_prob: Dropout of the attention.
        classifier_dropout: Dropout of the head; by default `hidden_dropout_prob`.
        initializer_range: Standard deviation of the initial relative attention biases; matrices
            start from Xavier's uniform distribution.
        layer_norm_eps: Epsilon of the layer normalizations.
        attention_form: `"paper"`, the score of the publication, or `"reference"`, that of the
            authors' code, which their published weights need.
        pair_relations: What takes part of what is known about a pair, names in `PAIR_RELATIONS`:
            `"bond"`, `"neighborhood"`, `"distance"`; at least one.
        pair_terms: Where it comes in, names in `PAIR_TERMS`: `"keys"`, the bias that queries and
            keys meet in the scores, and `"values"`; an empty list is attention without pairs.
        recompute_pairs: Compute the pairs again for the gradient instead of keeping them: less
            memory.
        pooling: How nodes become one vector, a name in `POOLINGS`: `"attention"` (GROVER's
            self-attentive readout), `"mean"` over the nodes without padding, or `"dummy_node"`.
        num_pooling_heads: Distributions of `"attention"`.
        pooling_hidden_size: Hidden width of that pooling.
        num_head_layers: Linear layers of the prediction head.
        head_hidden_size: Hidden width of a head of several layers.
        head_norm: Whether its hidden layers have a layer norm.
        num_molecule_descriptors: Molecule descriptors concatenated to the molecule vector before
            the head.
        covariates: Of a model that knows more of a row than its molecule: a `name` for each, and
            `categories` of one that is no number; `commas`, `"decimal"` or `"thousands"`, where the
            table of training had some. They follow the molecule descriptors, and
            `num_molecule_descriptors` counts both.
        num_atom_contexts: Outputs of the head `"context"` of models without `pretraining_heads`.
        num_descriptor_labels: Outputs of their head `"descriptor"`.
        pretraining_heads: Heads of `RMatForPreTraining` by name. Each has a `"level"` (`"node"` or
            `"molecule"`), a `"size"` (number of outputs) and a `"loss"` (a name in `LOSSES`); with
            a `"rank"` it is two linear layers with that many channels between them.
        label_mean: Mean of each label on the training rows.
        label_std: Its standard deviation there.
        label_units: Units of regression labels, as `["kcal/mol"]`.
        label_name: The one label whose classes `id2label` lists.
        label_types: Of a regression of which some labels are yes or no: the problem type of each,
            `"regression"` or `"multi_label_classification"`. `logits` of classes are probabilities.
        label_transforms: What each label is learned as, a name in `LABEL_TRANSFORMS`; predictions
            are in the units before that.
        loss: A name in `LOSSES`; by default that of the problem type.
        loss_weights: Multi-label: weight of the positive rows of each label. Single-label: weight
            of each class. Regression: weight of each label.
        trust: What the model knows of its own errors, as [`RMatTrust`] keeps it: `"kind"`, a name
            in `TRUST_KINDS`, `"num_references"`, and for each output `"num_rows"` that were held
            out; from which rows these came, as `"source"`; the largest novelty inside of the
            domain, `"threshold"`; of training `"max_atoms"` and `"elements"`, their classes.

    Raises:
        ValueError: A value is out of bounds, fields contradict each other, or what is said of the
            labels is not said of each.

    Example:
    ```python
    >>> config = RMatConfig(hidden_size=64, num_attention_heads=4, num_labels=1)
    >>> config.num_pair_features  # bond, neighborhood order and radial basis of a pair
    46
    >>> RMatConfig(hidden_size=65, num_attention_heads=4)
    Traceback (most recent call last):
        ...
    huggingface_hub.errors.StrictDataclassClassValidationError: ...

    ```
    """

    model_type = "rmat"
    # whether `Trainer` trains the head; else it is solved for its labels
    learns_by_gradient = True
    _auto_class = "AutoConfig"
    # All heads share the pairs, so the attention stays whole on each device.
    base_model_tp_plan = {
        "layers.*.feed_forward.up_proj": "colwise",
        "layers.*.feed_forward.down_proj": "rowwise",
    }
    base_model_fsdp_plan = {
        "embeddings": "free_full_weight",
        "layers.*": "free_full_weight",
        "final_norm": "keep_full_weight",
    }

    num_node_features: int = interval(min=3)(default=37)
    num_bond_features: int = interval(min=NUM_BOND_FEATURES, max=NUM_BOND_FEATURES)(
        default=NUM_BOND_FEATURES
    )
    max_neighborhood_order: int = interval(min=1, max=UNREACHABLE_DISTANCE - 1)(default=4)
    num_radial_basis: int = interval(min=1)(default=32)
    distance_cutoff: float | int = bounded(sys.float_info.min)(default=20.0)
    radial_envelope_exponent: float | int = bounded(1.0)(default=5)
    hidden_size: int = interval(min=1)(default=768)
    intermediate_size: int = interval(min=1)(default=1536)
    num_hidden_layers: int = interval(min=1)(default=10)
    num_attention_heads: int = interval(min=1)(default=12)
    hidden_act: str = activation_fn_key(default="leaky_relu")
    leaky_relu_slope: float | int = bounded()(default=0.1)
    feed_forward_act: str | None = None
    num_feed_forward_layers: int = interval(min=1)(default=2)
    hidden_dropout_prob: float | int = interval(min=0.0, max=1.0)(default=0.0)
    attention_probs_dropout_prob: float | int = interval(min=0.0, max=1.0)(default=0.0)
    classifier_dropout: float | int | None = bounded(0.0, 1.0)(default=None)
    initializer_range: float | int = bounded(0.0)(default=0.02)
    layer_norm_eps: float = bounded(0.0)(default=1e-5)
    attention_form: Literal["paper", "reference"] = "paper"
    pair_relations: list[str] | tuple[str, ...] = chosen_from(PAIR_RELATIONS, least=1)(
        default=tuple(PAIR_RELATIONS)
    )
    pair_terms: list[str] | tuple[str, ...] = chosen_from(PAIR_TERMS)(default=PAIR_TERMS)
    recompute_pairs: bool = False
    pooling: str = "attention"
    num_pooling_heads: int = interval(min=1)(default=4)
    pooling_hidden_size: int = interval(min=1)(default=128)
    num_head_layers: int = interval(min=1)(default=1)
    head_hidden_size: int = interval(min=1)(default=128)
    head_norm: bool = True
    num_molecule_descriptors: int = interval(min=0)(default=0)
    covariates: list[dict[str, str | list[str] | None]] | None = None
    num_atom_contexts: int = interval(min=1)(default=2048)
    num_descriptor_labels: int = interval(min=1)(default=200)
    pretraining_heads: dict[str, dict[str, str | int]] | None = None
    label_mean: list[float | int] | None = bounded()(default=None)
    label_std: list[float | int] | None = bounded(sys.float_info.min)(default=None)
    label_units: list[str] | None = None
    label_name: str | None = None
    label_types: list[str] | None = None
    label_transforms: list[str] | None = None
    loss: str | None = None
    loss_weights: list[float | int] | None = bounded()(default=None)
    trust: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # CODEPATH: models of the authors' code with another `ffn_n_layers`.
        if self.num_feed_forward_layers != 2:
            self.base_model_tp_plan = {}  # type: ignore[misc]  # hides that of the class
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Raise if fields contradict each other; called at construction and before saving."""
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}. Choose sizes that divide."
            )
        for name, head in self.list_pretraining_heads().items():
            is_known = head.get("level") in ("node", "molecule") and "loss" in head
            widths = (head.get("size", 0), head.get("rank", 1))
            if not (name.isidentifier() and is_known and min(widths) >= 1):
                raise ValueError(
                    f"pretraining_heads[{name!r}]={head} is no head. It has a level, node or "
                    "molecule, a size, a loss, and if it is to have fewer weights a rank."
                )

    def validate_labels(self) -> None:
        """Raise unless there are labels and what is known of them is known of each."""
        if not self.output_names:
            raise ValueError("num_labels is 0. A head has one label or more.")
        names = ("label_mean", "label_std", "label_units", "label_types", "label_transforms")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        has_others = any(len(values) != self.num_labels for values in given.values())
        if has_others or ("label_mean" in given) != ("label_std" in given):
            raise ValueError(
                f"{given} do not fit {self.num_labels} labels. Give one value for each label, and "
                "label_mean and label_std together."
            )

    def validate_trust(self) -> None:
        """Raise unless what is known of errors is known of each output."""
        if self.trust is None:
            return
        rows, num_outputs = self.trust.get("num_rows"), len(self.output_names)
        counts = [self.trust.get("num_references"), *(rows if isinstance(rows, list) else [])]
        is_known = self.trust.get("kind") in TRUST_KINDS and len(counts) == 1 + num_outputs
        is_known = is_known and isinstance(self.trust.get("threshold"), float | int)
        if not is_known or not all(isinstance(it, int) and it >= 0 for it in counts):
            raise ValueError(
                f"trust={self.trust} has not a kind out of {TRUST_KINDS}, num_references, "
                f"threshold and num_rows of {num_outputs} outputs. Restore the saved file, or "
                "remove it."
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "RMatConfig":
        """Build a configuration from saved fields, as [`PreTrainedConfig.from_dict`].

        A field that is unknown is named in a warning and left out: nothing reads it.

        With another `num_labels`, `problem_type` or `id2label` than the saved one, the labels are
        others: names, scaling, units, loss and weights of the saved ones are left out, and the
        problem type stays if no other is given.

        Raises:
            ValueError: The labels are not numbered, or the weights of no floating-point type.
        """
        known = [*(field.name for field in fields(cls)), *SAVED_KEYS]
        for name in config_dict.keys() - set(known):
            similar = difflib.get_close_matches(str(name), known, n=1, cutoff=0.8)
            hint = f"Did you mean {similar[0]!r}?" if similar else "A later release may know it."
            logger.warning("The field %r of a configuration is unknown and ignored. %s", name, hint)
        saved = {name: value for name, value in config_dict.items() if name in known}
        for name in ("dtype", "torch_dtype"):
            # an object, not a name, when a configuration that was never saved is copied
            dtype = str(saved.get(name) or "float32").removeprefix("torch.")
            if dtype not in FLOAT_TYPES:
                raise ValueError(f"{name} is {dtype!r}. Choose one of {list(FLOAT_TYPES)}.")
        labels = {} if saved.get("id2label") is None else saved["id2label"]
        numbers = {str(idx) for idx in range(len(labels))}
        if not isinstance(labels, Mapping) or {str(key) for key in labels} != numbers:
            raise ValueError(f"id2label is {labels!r}. Number the labels from 0: {{'0': 'y'}}.")
        pipelines = saved.get("custom_pipelines")
        # CODEPATH: the package is installed; this is not the code of a folder.
        if isinstance(pipelines, dict) and not cls.__module__.startswith("transformers_modules."):
            saved["custom_pipelines"] = RMatRegisteredPipelines(pipelines)
        saved = _replace_labels(saved, kwargs, can_learn=cls.learns_by_gradient)
        return super().from_dict(saved, **kwargs)

    @classmethod
    def list_architecture_fields(cls) -> list[str]:
        """Return the names of the fields that describe the network and not the labels."""
        return [name for name in RMatConfig.__annotations__ if name not in TASK_FIELDS]

    def get_architecture(self) -> dict[str, Any]:
        """Return the fields that describe the network, to build a config for other labels."""
        return {name: getattr(self, name) for name in self.list_architecture_fields()}

    def list_pretraining_heads(self) -> dict[str, dict[str, Any]]:
        """Return the heads of `RMatForPreTraining`: name → level, size and loss."""
        if self.pretraining_heads is not None:
            return self.pretraining_heads
        # CODEPATH: `rmat-small`, and what was pretrained when there were these two heads only.
        size, num_labels = self.num_atom_contexts, self.num_descriptor_labels
        return {
            "context": {"level": "node", "size": size, "loss": "single_label_classification"},
            "descriptor": {"level": "molecule", "size": num_labels, "loss": "regression"},
        }

    @property
    def num_neighborhood_orders(self) -> int:
        """Classes of the neighborhood order: 0 to `max_neighborhood_order`, and unreachable."""
        return self.max_neighborhood_order + 2

    @property
    def relation_sizes(self) -> dict[str, int]:
        """Width of each relation in the pair features; 0 of one that takes no part."""
        sizes = {name: getattr(self, field) for name, field in PAIR_RELATIONS.items()}
        return {name: size * (name in self.pair_relations) for name, size in sizes.items()}

    @property
    def num_pair_features(self) -> int:
        """Width of everything known about a pair: by default 8 + 6 + 32."""
        return sum(self.relation_sizes.values())

    @property
    def num_code_features(self) -> int:
        """Width of what an integer code tells about a pair: bond and neighborhood order."""
        return self.num_pair_features - self.relation_sizes["distance"]

    @property
    def gives_spread(self) -> bool:
        """Whether predictions come with a standard deviation."""
        return False

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs of the head: labels, or the classes of a single label."""
        return _sort_names(self.id2label)

    @property
    def types(self) -> tuple[str, ...]:
        """Problem type of each output."""
        problem_type = self.problem_type or "regression"
        return tuple(self.label_types or [problem_type] * len(self.output_names))

    @property
    def label_columns(self) -> list[str]:
        """Names of the labels, in the order of the training table's columns."""
        return self.output_names if self.label_name is None else [self.label_name]


def _sort_names(id2label: Mapping[Any, Any] | None) -> list[str]:
    names = sorted((id2label or {}).items(), key=lambda item: int(item[0]))
    return [str(name) for _, name in names]


def _replace_labels(
    saved: dict[str, Any], given: dict[str, Any], *, can_learn: bool = True
) -> dict[str, Any]:
    """Return the saved fields with the labels that are given, if these are others.

    `can_learn`: whether the head can be trained on them.
    """
    new = {name: given[name] for name in (*LABEL_FIELDS, "problem_type") if name in given}
    old_names, names = _sort_names(saved.get("id2label")), _sort_names(new.get("id2label"))
    old_size = len(old_names) or saved.get("num_labels", 2)
    is_other = (
        new.get("num_labels", old_size) != old_size
        or new.get("problem_type", saved.get("problem_type")) != saved.get("problem_type")
        or (names or old_names) != old_names
    )
    if not is_other:
        return saved
    if not can_learn:
        raise ValueError(
            "The head of this model is solved for its own labels and learns no others. finetune("
            "model=...) fits a new one; RMatForSequenceClassification.from_pretrained(...) takes "
            "its encoder alone."
        )
    kept = {name: value for name, value in saved.items() if name not in LABEL_FIELDS}
    new.setdefault("num_labels", len(names) or old_size)
    return kept | new


@strict
class RMatEnsembleConfig(RMatConfig):
    r"""Configuration of an ensemble: that of one member, all being alike, and their number.

    Args:
        num_members: Models in the ensemble.
        kwargs: Fields of [`RMatConfig`].

    Raises:
        ValueError: As [`RMatConfig`].

    Example:
    ```python
    >>> RMatEnsembleConfig(num_members=3, num_labels=1).num_members
    3

    ```
    """

    model_type = "rmat_ensemble"
    base_model_tp_plan, base_model_fsdp_plan = (
        {f"members.*.rmat.{name}": style for name, style in plan.items()}
        for plan in (RMatConfig.base_model_tp_plan, RMatConfig.base_model_fsdp_plan)
    )

    num_members: int = interval(min=1)(default=1)

    @property
    def gives_spread(self) -> bool:
        """Whether predictions come with a standard deviation, that of the members."""
        return True


# What the forest of a stack reads beside descriptors.
FOREST_FINGERPRINT = "ecfp4"


@strict
class RMatKernelConfig(RMatConfig):
    r"""Configuration of a kernel head on an encoder, which keeps the rows that it was fitted on.

    Args:
        kernel_features: What has a kernel: `"vectors"` of the encoder, `"environments"`, how often
            its atoms are in each of 512 kinds that their states after each of its first four layers
            are divided into, `"descriptors"`, and names of fingerprints, in the processor's order.
        num_train_rows: Rows that the head keeps.
        num_count_entries: Fingerprint counts of all rows together that are not 0.
        has_row_weights: Whether rows have weights.
        kwargs: Fields of [`RMatConfig`].

    Raises:
        ValueError: As [`RMatConfig`].

    Example:
    ```python
    >>> RMatKernelConfig(kernel_features=["vectors", "ecfp4"], num_labels=1).fingerprints
    ['ecfp4']

    ```
    """

    model_type = "rmat_kernel"
    learns_by_gradient = False

    kernel_features: list[str] = field(default_factory=lambda: ["vectors"])
    num_train_rows: int = interval(min=1)(default=1)
    num_count_entries: int = interval(min=0)(default=0)
    has_row_weights: bool = False

    @property
    def gives_spread(self) -> bool:
        """Whether predictions come with a standard deviation, that of the process."""
        return self.problem_type in (None, "regression")

    @property
    def fingerprints(self) -> list[str]:
        """Names of the fingerprints that have a kernel."""
        own = ("vectors", "environments", "descriptors", "covariates")
        return [name for name in self.kernel_features if name not in own]

    @property
    def reads_descriptors(self) -> bool:
        """Whether predicting takes molecule descriptors."""
        return bool({"descriptors", "covariates"} & {*self.kernel_features})

    @property
    def counted(self) -> list[str]:
        """Names of what is counted in a molecule: the fingerprints, and `"environments"`."""
        return [*self.fingerprints, *{"environments"} & {*self.kernel_features}]

    @property
    def num_environment_layers(self) -> int:
        """Layers whose states of atoms are divided into kinds."""
        has_any = "environments" in self.kernel_features
        return min(self.num_hidden_layers, MAX_ENVIRONMENT_LAYERS) if has_any else 0


@strict
class RMatStackConfig(RMatKernelConfig):
    r"""Configuration of a stack: kernel head and forest, perhaps networks, and their weights.

    Args:
        num_trees: Trees of each forest; a label has a forest of its own, classes share one.
        num_tree_nodes: Nodes of all trees together.
        max_tree_depth: Most splits from the root of a tree to a leaf.
        num_networks: Networks of the third member, an ensemble; 0 for none.
        kwargs: Fields of [`RMatKernelConfig`].

    Raises:
        ValueError: As [`RMatConfig`].

    Example:
    ```python
    >>> RMatStackConfig(kernel_features=["vectors"], num_labels=1).fingerprints
    ['ecfp4']

    ```
    """

    model_type = "rmat_stack"

    num_trees: int = interval(min=1)(default=1)
    num_tree_nodes: int = interval(min=1)(default=1)
    max_tree_depth: int = interval(min=0)(default=0)
    num_networks: int = interval(min=0)(default=0)

    @property
    def reads_descriptors(self) -> bool:
        """Whether predicting takes molecule descriptors: the forest always does."""
        return True

    @property
    def fingerprints(self) -> list[str]:
        """Names of the fingerprints that the kernel or the forest reads."""
        return list(dict.fromkeys([*super().fingerprints, FOREST_FINGERPRINT]))
