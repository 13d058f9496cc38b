"""R-MAT in PyTorch around its attention: layers, poolings, the encoder and its heads."""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention_rmat import RMatPairFeatures, RMatSelfAttention, build_activation, build_head, widen
from .configuration_rmat import DUMMY_NODE_IDX, RMatConfig
from .losses_rmat import LOSSES, RMatAdapterMixin, choose, compute_label_loss, restore_labels
from .trust_rmat import build_trust, kept_exact

# A standardized descriptor further out than this is an outlier of the descriptor, not a signal.
MAX_SCALED_DESCRIPTOR = 8.0


@dataclass
class RMatForPreTrainingOutput(ModelOutput):
    """Output of [`RMatForPreTraining`].

    Args:
        loss: Sum of the losses of the heads whose labels were given.
        context_loss, descriptor_loss, context_logits, descriptor_logits:
            Those of the heads `"context"` and `"descriptor"`, if the model has them.
        hidden_states: Input and output of every layer.
        attentions: Attention probabilities of every layer.
        losses: The loss of each head, by its name.
        logits: Outputs of every head, `(batch_size, num_nodes, size)` or `(batch_size, size)`.
    """

    loss: torch.Tensor | None = None
    context_loss: torch.Tensor | None = None
    descriptor_loss: torch.Tensor | None = None
    context_logits: torch.Tensor | None = None
    descriptor_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    losses: dict[str, torch.Tensor] | None = None
    logits: dict[str, torch.Tensor] | None = None


class RMatEmbeddings(nn.Module):
    """Linear embedding of the node features."""

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        self.node_proj: nn.Module = nn.Linear(config.num_node_features, config.hidden_size)

    def forward(self, node_features: torch.Tensor) -> torch.Tensor:
        # under autocast the states of the nodes stay in the type of the weights between the layers
        with torch.autocast(node_features.device.type, enabled=False):
            return self.node_proj(node_features)


class RMatFeedForward(nn.Module):
    """Linear layers, by default two, applied to every node."""

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        # CODEPATH: other numbers than two are models of the authors' code with `ffn_n_layers`.
        is_single = config.num_feed_forward_layers == 1
        width = config.hidden_size if is_single else config.intermediate_size
        self.up_proj = nn.Linear(config.hidden_size, width)
        self.middle_projs = nn.ModuleList(
            nn.Linear(width, width) for _ in range(config.num_feed_forward_layers - 2)
        )
        self.act_fn = build_activation(config, config.feed_forward_act)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.down_proj = nn.Identity() if is_single else nn.Linear(width, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # flat: autograd copies what the activation changes in place through a view
        hidden = self.dropout(self.act_fn(self.up_proj(hidden_states.flatten(0, 1))))
        for middle_proj in self.middle_projs:
            hidden = self.dropout(self.act_fn(middle_proj(hidden)))
        return self.down_proj(hidden).view(hidden_states.shape)


class RMatLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block."""

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attention = RMatSelfAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = RMatFeedForward(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Return new hidden states; `inputs` are those of [`RMatSelfAttention`]."""
        attention_output, _ = self.self_attention(self.attention_norm(hidden_states), **inputs)
        hidden_states = hidden_states + self.dropout(attention_output)
        feed_forward_output = self.feed_forward(self.feed_forward_norm(hidden_states))
        return hidden_states + self.dropout(feed_forward_output)


# How nodes become one vector: `(batch_size, num_nodes, hidden_size)` and the mask become
# `(batch_size, output_size)`. A new way is a class and a line of `POOLINGS`.


class RMatPooling(nn.Module):
    """Base class, for a vector as wide as a node."""

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        self.output_size = config.hidden_size


class RMatAttentionPooling(RMatPooling):
    """Self-attentive readout of GROVER (arXiv 2007.02835, 4.3); the dummy node takes part."""

    def __init__(self, config: RMatConfig) -> None:
        super().__init__(config)
        self.output_size = config.num_pooling_heads * config.hidden_size
        self.hidden_proj = nn.Linear(config.hidden_size, config.pooling_hidden_size, bias=False)
        self.score_proj = nn.Linear(
            config.pooling_hidden_size, config.num_pooling_heads, bias=False
        )

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        scores = self.score_proj(torch.tanh(self.hidden_proj(hidden_states)))
        padding = attention_mask.unsqueeze(-1) == 0
        scores = scores.masked_fill(padding, torch.finfo(scores.dtype).min)
        weights = nn.functional.softmax(scores, dim=1)
        return torch.matmul(weights.transpose(1, 2), hidden_states).flatten(1)


class RMatMeanPooling(RMatPooling):
    """Mean over the nodes that are not padding, the dummy node included."""

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        weights = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
        return (hidden_states * weights).sum(1) / weights.sum(1)


class RMatDummyNodePooling(RMatPooling):
    """The dummy node, which sees every atom."""

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return hidden_states[:, DUMMY_NODE_IDX]


POOLINGS: dict[str, type[RMatPooling]] = {
    "attention": RMatAttentionPooling,
    "mean": RMatMeanPooling,
    "dummy_node": RMatDummyNodePooling,
}


class RMatDescriptorScaler(nn.Module):
    """Standardizes raw molecule descriptors with statistics that are saved with the weights."""

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(config.num_molecule_descriptors))
        self.std = nn.Buffer(torch.ones(config.num_molecule_descriptors))

    @torch.no_grad()
    def fit(self, molecule_descriptors: torch.Tensor) -> None:
        """Set mean and standard deviation to those of the training molecules; NaN is unknown."""
        descriptors = molecule_descriptors.double()
        mean = descriptors.nanmean(0)
        variance = ((descriptors - mean) ** 2).nanmean(0)
        self.mean.copy_(mean.nan_to_num(0.0))
        # a constant descriptor, or one that is never known, says nothing and keeps its scale
        self.std.copy_(torch.where(variance > 0, variance.sqrt(), 1.0))

    def forward(self, molecule_descriptors: torch.Tensor) -> torch.Tensor:
        scaled = (molecule_descriptors.to(self.mean.dtype) - self.mean) / self.std
        # a missing descriptor takes the mean of the training molecules
        scaled = scaled.nan_to_num(0.0, posinf=MAX_SCALED_DESCRIPTOR, neginf=-MAX_SCALED_DESCRIPTOR)
        return scaled.clamp(-MAX_SCALED_DESCRIPTOR, MAX_SCALED_DESCRIPTOR)


class RMatPredictionHead(nn.Module):
    """Linear layers from the vector of a molecule, or of a node, to the outputs."""

    def __init__(self, config: RMatConfig, *, input_size: int, output_size: int) -> None:
        super().__init__()
        self.num_layers = config.num_head_layers
        # CODEPATH: regressions finetuned from `rmat-small` have a dropout for the head alone.
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        # CODEPATH: two layers are regressions from `rmat-small`, any number the authors' models.
        if self.num_layers > 1:
            width, num_middle = config.head_hidden_size, self.num_layers - 2
            self.dense = nn.Linear(input_size, width)
            self.act_fn = build_activation(config)
            self.norm = self.build_norm(config)
            self.middle_denses = nn.ModuleList(nn.Linear(width, width) for _ in range(num_middle))
            self.middle_norms = nn.ModuleList(self.build_norm(config) for _ in range(num_middle))
            input_size = width
        self.out_proj = nn.Linear(input_size, output_size)

    @staticmethod
    def build_norm(config: RMatConfig) -> nn.Module:
        """Return what follows the activation of a hidden layer."""
        # CODEPATH: the authors' models have a norm, regressions from `rmat-small` have none.
        if not config.head_norm:
            return nn.Identity()
        return nn.LayerNorm(config.head_hidden_size, eps=config.layer_norm_eps)

    def forward(self, pooled_output: torch.Tensor) -> torch.Tensor:
        if self.num_layers > 1:
            pooled_output = self.norm(self.act_fn(self.dense(pooled_output)))
            for dense, norm in zip(self.middle_denses, self.middle_norms, strict=True):
                pooled_output = norm(self.act_fn(dense(self.dropout(pooled_output))))
        return self.out_proj(self.dropout(pooled_output))


class RMatPreTrainedModel(RMatAdapterMixin, PreTrainedModel):
    """Weight initialization and everything else that `PreTrainedModel` needs to know."""

    config: RMatConfig
    base_model_prefix = "rmat"
    main_input_name = "node_features"
    input_modalities = "graph"
    supports_gradient_checkpointing = True
    # the head divides by the number of known labels itself
    accepts_loss_kwargs = False
    _no_split_modules = ["RMatLayer"]
    # most of the error of half precision would come from these few weights
    _keep_in_fp32_modules_strict = ["key_pairs", "value_pairs"]
    # What quantization leaves alone, by names from their start. The second line is for modules with
    # widths that may be odd, not for their weights, which half precision would keep in float32.
    _keep_in_fp32_modules = [
        r"(?:.*\.(?:key_pairs|value_pairs)"
        r"|(?!.*\.(?:weight|bias)$)(?:.*\.)?(?:node_proj|pooler|classifier|\w+_head))"
    ]
    _can_compile_fullgraph = True
    _input_embed_layer = "node_proj"
    # Where the Auto classes find the code in a saved folder.
    saved_auto_map = {
        "AutoConfig": "configuration_rmat.RMatConfig",
        "AutoModel": "modeling_rmat.RMatModel",
        "AutoModelForPreTraining": "modeling_rmat.RMatForPreTraining",
        "AutoModelForSequenceClassification": "modeling_rmat.RMatForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_rmat.RMatForTokenClassification",
    }
    _can_record_outputs = {"hidden_states": RMatLayer, "attentions": RMatSelfAttention}

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """Keep whole numbers whole, and in float32 what is named from the start of its name."""
        plan = super()._get_dtype_plan(dtype)
        whole = {name: it.dtype for name, it in self.named_buffers() if not it.is_floating_point()}
        # of a stack its own, not those of its networks
        return whole | {f"^{it}" if it == "classifier" else it: plan[it] for it in plan}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        with kept_exact(self):
            return super()._apply(fn, recurse)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Save weights, config and code: a folder that loads without this package."""
        # only a saved model needs its pipeline, and transformers copies the file
        from .pipeline_rmat import describe_pipeline

        # CODEPATH: registered classes, that is whenever the package was imported.
        if self._auto_class is not None:
            # transformers alone would list the class that is saved, and lose the others
            self.config.auto_map = dict(self.saved_auto_map)
            self.config.custom_pipelines = describe_pipeline(type(self).__name__)
        super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.PReLU):
            init.constant_(module.weight, 0.25)
        elif isinstance(module, RMatSelfAttention):
            self._init_attention(module)
        elif isinstance(module, RMatPairFeatures):
            init.copy_(module.code_features, module.compute_code_features())
        elif isinstance(module, RMatDescriptorScaler):
            init.zeros_(module.mean)
            init.ones_(module.std)

    def _init_attention(self, layer: RMatSelfAttention) -> None:
        own = dict(layer.named_parameters(recurse=False))

        def list_own(*names: str) -> list[nn.Parameter]:
            return [own[name] for name in names if name in own]

        for bias in list_own("content_bias", "pair_bias"):
            init.normal_(bias, std=self.config.initializer_range)
        # Xavier's limits of the whole layers of the pair networks, of which these are parts
        limit = math.sqrt(6 / (self.config.num_pair_features + layer.head_size))
        for embedding in (layer.key_pairs, layer.value_pairs):
            for projection in () if embedding is None else embedding.projections:
                init.uniform_(projection.weight, -limit, limit)
        limit = math.sqrt(6 / (layer.head_size + self.config.hidden_size))
        for weight in list_own("key_pair_weight", "value_pair_weight"):
            init.uniform_(weight, -limit, limit)
        for constant in list_own("key_pair_constant", "value_pair_constant"):
            init.zeros_(constant)


class RMatModel(RMatPreTrainedModel):
    """The encoder with its pooling, if any: molecules in, node and molecule vectors out.

    Args:
        config ([`RMatConfig`]): The architecture; weights start random, see `from_pretrained`.

    Raises:
        ValueError: The configuration names a pooling that nobody knows.

    Example:
    ```python
    >>> path = checkpoint_path("rmat-small")
    >>> model, processor = RMatModel.from_pretrained(path), RMatProcessor.from_pretrained(path)
    >>> output = model(**processor(["CCO", "c1ccccc1"], return_tensors="pt"))
    >>> output.pooler_output.shape  # (batch_size, output_size)
    torch.Size([2, 512])
    >>> output.last_hidden_state.shape  # (batch_size, num_nodes, hidden_size)
    torch.Size([2, 7, 128])

    ```
    """

    _auto_class = "AutoModel"

    # the encoder of a model with a head is complete without the head
    _keys_to_ignore_on_load_unexpected = [r"^(classifier|descriptor_scaler|\w+_head)\."]

    def __init__(self, config: RMatConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = RMatEmbeddings(config)
        self.pair_features = RMatPairFeatures(config)
        self.layers = nn.ModuleList([RMatLayer(config) for _ in range(config.num_hidden_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        pooling = choose(POOLINGS, config.pooling)
        self.pooler: Any = pooling(config) if add_pooling_layer else None
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        node_features: torch.Tensor,
        bond_types: torch.Tensor,
        topological_distances: torch.Tensor,
        interatomic_distances: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""Encode a padded batch of molecules, as `RMatProcessor` makes it.

        What is known about a pair must not depend on the order of its two nodes.

        Args:
            node_features: `(batch_size, num_nodes, num_node_features)`; the dummy node at index 0,
                then the heavy atoms.
            bond_types: `(batch_size, num_nodes, num_nodes)`; integer code of the bond between two
                nodes, 0 where there is none.
            topological_distances: Of the same shape; shortest path in bonds, 255 where none is.
            interatomic_distances: Of the same shape; 3D distance in Å, 1e6 to the dummy node.
            attention_mask: `(batch_size, num_nodes)`; 1 for a node, 0 for padding. By default ones.

        Returns:
            `last_hidden_state` of shape `(batch_size, num_nodes, hidden_size)` and `pooler_output`
            of shape `(batch_size, output_size)`, `None` without a pooling.
        """
        if not isinstance(node_features, torch.Tensor):
            raise TypeError(
                f"node_features is a {type(node_features).__name__}, not a tensor. Call the "
                'processor with return_tensors="pt".'
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(node_features[..., 0], dtype=torch.long)
        hidden_states = self.embeddings(node_features.to(self.dtype))
        pair_codes, radial_basis = self.pair_features(
            bond_types, topological_distances, interatomic_distances
        )
        padding = attention_mask[:, None, None, :] == 0
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                padding=padding,
                pair_codes=pair_codes,
                radial_basis=radial_basis,
                code_features=self.pair_features.code_features,
            )
        last_hidden_state = self.final_norm(hidden_states)
        # cheap, and its rounding would reach the outputs undamped
        with torch.autocast(hidden_states.device.type, enabled=False):
            pooler_output = self.pooler and self.pooler(last_hidden_state, attention_mask)
        return BaseModelOutputWithPooling(last_hidden_state, pooler_output)


class RMatForPreTraining(RMatPreTrainedModel):
    """The heads of pretraining: each predicts something of every node or of the molecule.

    Args:
        config ([`RMatConfig`]): The architecture, and `pretraining_heads`.

    Raises:
        ValueError: The configuration names a pooling or a loss that nobody knows.

    Example:
    ```python
    >>> path = checkpoint_path("rmat-small")
    >>> model = RMatForPreTraining.from_pretrained(path)
    >>> processor = RMatProcessor.from_pretrained(path)
    >>> output = model(**processor("CCO", return_tensors="pt"))
    >>> output.logits["context"].shape  # (batch_size, num_nodes, number of contexts)
    torch.Size([1, 4, 408])
    >>> output.logits["descriptor"].shape  # (batch_size, number of descriptors)
    torch.Size([1, 215])

    ```
    """

    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: RMatConfig) -> None:
        super().__init__(config)
        self.rmat = RMatModel(config)
        self.heads = config.list_pretraining_heads()
        sizes = {"node": config.hidden_size, "molecule": self.rmat.pooler.output_size}
        for name, head in self.heads.items():
            self.add_module(f"{name}_head", build_head(sizes[head["level"]], head))
        self.post_init()

    def compute_loss(
        self, name: str, logits: torch.Tensor, *, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of a head's outputs `(batch_size, [num_nodes,] size)`.

        The labels have the same shape or that of the loss; class indices lack the last axis.
        """
        rows = labels.flatten() if labels.ndim < logits.ndim else widen(labels).flatten(0, -2)
        return choose(LOSSES, self.heads[name]["loss"])(widen(logits).flatten(0, -2), rows)

    @can_return_tuple
    def forward(
        self,
        node_features: torch.Tensor,
        bond_types: torch.Tensor,
        topological_distances: torch.Tensor,
        interatomic_distances: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        descriptor_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> RMatForPreTrainingOutput:
        r"""Predict what the heads have learned of a padded batch; other inputs: [`RMatModel`].

        Args:
            labels: `(batch_size, num_nodes)`, of the head `"context"`: class of each masked
                center, -100 for every other node.
            descriptor_labels: `(batch_size, num_descriptor_labels)`, of the head `"descriptor"`:
                normalized descriptors, NaN where missing.
            kwargs: `<name>_labels` of any other head, and options of [`RMatModel`].
        """
        labels_by_head = {"context": labels, "descriptor": descriptor_labels}
        for name in self.heads:
            labels_by_head[name] = kwargs.pop(f"{name}_labels", labels_by_head.get(name))
        inputs = (node_features, bond_types, topological_distances, interatomic_distances)
        outputs = self.rmat(*inputs, attention_mask, return_dict=True, **kwargs)
        states = {"node": outputs.last_hidden_state, "molecule": outputs.pooler_output}
        logits = {
            name: getattr(self, f"{name}_head")(states[head["level"]])
            for name, head in self.heads.items()
        }
        losses = {
            name: self.compute_loss(name, logits[name], labels=given)
            for name, given in labels_by_head.items()
            if given is not None
        }
        return RMatForPreTrainingOutput(
            loss=torch.stack([*losses.values()]).sum() if losses else None,
            losses=losses or None,
            logits=logits,
            context_loss=losses.get("context"),
            descriptor_loss=losses.get("descriptor"),
            context_logits=logits.get("context"),
            descriptor_logits=logits.get("descriptor"),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# Its subclasses call `post_init`, when they have their heads. trf-ignore: TRF013
class RMatPredictor(RMatPreTrainedModel):
    """What the heads for a user's labels share: what outputs mean, their scaling and their loss."""

    classifier: RMatPredictionHead

    def __init__(self, config: RMatConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.num_labels = len(config.output_names)
        # what the outputs mean; a name that nobody knows shows now, and not with the first batch
        self.meaning = choose(LOSSES, config.problem_type or "regression")
        choose(LOSSES, config.loss or "regression")
        self.rmat = RMatModel(config, add_pooling_layer)
        self.trust_head = build_trust(self, self.rmat)

    def build_head(self, config: RMatConfig) -> RMatPredictionHead:
        """Return a new head for the labels of a configuration."""
        pooler, num_descriptors = self.rmat.pooler, config.num_molecule_descriptors
        size = pooler.output_size + num_descriptors if pooler else config.hidden_size
        return RMatPredictionHead(config, input_size=size, output_size=len(config.output_names))

    def compute_loss(
        self,
        head_output: torch.Tensor,
        labels: torch.Tensor,
        is_labeled: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss of the head's output, before it is brought to the user's units.

        `is_labeled`: where labels count, `head_output.shape[:-1]`; by default everywhere.
        """
        return compute_label_loss(self.config, head_output, labels, is_labeled)

    def predict_labels(
        self,
        vectors: torch.Tensor,
        labels: torch.Tensor | None,
        is_labeled: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the loss, if there are labels, and the logits of vectors of molecules or atoms."""
        # as the pooling
        with torch.autocast(vectors.device.type, enabled=False):
            logits = widen(self.classifier(vectors))
        loss = None if labels is None else self.compute_loss(logits, labels, is_labeled)
        return loss, restore_labels(logits, self.config)


class RMatForSequenceClassification(RMatPredictor):
    """Predicts properties of a molecule: regression or classification, one label or several.

    With `label_mean` and `label_std` in the configuration a regression learns standardized labels,
    and labels and `logits` are in the user's units. A label that is NaN is missing.

    Args:
        config ([`RMatConfig`]): The architecture, with `num_labels` and `problem_type`.

    Raises:
        ValueError: The configuration names a pooling or a problem type that nobody knows, or the
            inputs lack the molecule descriptors that the model was trained with.

    Example:
    ```python
    >>> path = checkpoint_path("rmat-small")
    >>> model = RMatForSequenceClassification.from_pretrained(
    ...     path, num_labels=2, problem_type="regression"
    ... )
    >>> processor = RMatProcessor.from_pretrained(path)
    >>> labels = torch.tensor([[1.0, 2.0], [3.0, torch.nan]])
    >>> output = model(**processor(["CCO", "CCN"], return_tensors="pt"), labels=labels)
    >>> output.logits.shape, output.loss.ndim  # (batch_size, num_labels), a scalar
    (torch.Size([2, 2]), 0)

    ```
    """

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: RMatConfig) -> None:
        super().__init__(config)
        # CODEPATH: descriptors are models finetuned with `--molecule-descriptors rdkit_2d`.
        has_descriptors = config.num_molecule_descriptors > 0
        self.descriptor_scaler = RMatDescriptorScaler(config) if has_descriptors else None
        self.classifier = self.build_head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        node_features: torch.Tensor,
        bond_types: torch.Tensor,
        topological_distances: torch.Tensor,
        interatomic_distances: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        molecule_descriptors: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""Predict the properties of a padded batch of molecules; other inputs: [`RMatModel`].

        Args:
            molecule_descriptors: `(batch_size, num_molecule_descriptors)`; raw, NaN where
                undefined. Only for models trained with them.
            labels: `(batch_size, num_labels)`; in the user's units, NaN where missing. Of a
                single-label classification class indices `(batch_size,)`, NaN or -100 if missing.

        Returns:
            `logits` of shape `(batch_size, num_labels)`, of a regression in the user's units.
        """
        inputs = (node_features, bond_types, topological_distances, interatomic_distances)
        outputs = self.rmat(*inputs, attention_mask, return_dict=True, **kwargs)
        pooled_output = outputs.pooler_output
        if self.descriptor_scaler is not None:
            if molecule_descriptors is None:
                raise ValueError(
                    "molecule_descriptors are missing. Use the processor saved with the model."
                )
            descriptors = self.descriptor_scaler(molecule_descriptors)
            pooled_output = torch.cat((pooled_output, descriptors), dim=-1)
        loss, logits = self.predict_labels(pooled_output, labels)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class RMatForTokenClassification(RMatPredictor):
    """Predicts properties of every atom: regression or classification, one label or several.

    Args:
        config ([`RMatConfig`]): The architecture, with `num_labels` and `problem_type`.

    Raises:
        ValueError: The configuration names a problem type that nobody knows.

    Example:
    ```python
    >>> path = checkpoint_path("rmat-small")
    >>> options = {"problem_type": "regression", "label_mean": [0.1], "label_std": [0.2]}
    >>> model = RMatForTokenClassification.from_pretrained(path, num_labels=1, **options)
    >>> processor = RMatProcessor.from_pretrained(path)
    >>> logits = model(**processor(["CCO"], return_tensors="pt")).logits
    >>> logits.shape  # (batch_size, num_nodes, num_labels)
    torch.Size([1, 4, 1])
    >>> charges = logits[0, 1:, 0]  # of C, C and O, as the SMILES names them

    ```
    """

    _auto_class = "AutoModelForTokenClassification"
    # molecules have no vector here, and no descriptors
    _keys_to_ignore_on_load_unexpected = [r"^(rmat\.)?pooler\.", r"^(descriptor_scaler|\w+_head)\."]

    def __init__(self, config: RMatConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.classifier = self.build_head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        node_features: torch.Tensor,
        bond_types: torch.Tensor,
        topological_distances: torch.Tensor,
        interatomic_distances: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        r"""Predict the properties of every atom of a padded batch; other inputs: [`RMatModel`].

        Args:
            labels: `(batch_size, num_nodes, num_labels)`, or `(batch_size, num_nodes)` if there is
                one; in the user's units, of a single-label classification class indices. NaN
                where missing; nothing is read at the dummy node and at padding.

        Returns:
            `logits` of shape `(batch_size, num_nodes, num_labels)`, of a regression in the user's
            units; those of the dummy node, index 0, and of padding mean nothing.
        """
        inputs = (node_features, bond_types, topological_distances, interatomic_distances)
        outputs = self.rmat(*inputs, attention_mask, return_dict=True, **kwargs)
        positions = torch.arange(node_features.shape[1], device=node_features.device)
        is_atom = (positions != DUMMY_NODE_IDX).expand(node_features.shape[:2])
        if attention_mask is not None:
            is_atom = is_atom & (attention_mask != 0)
        loss, logits = self.predict_labels(outputs.last_hidden_state, labels, is_atom)
        return TokenClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


__all__ = [
    "RMatForPreTraining",
    "RMatForSequenceClassification",
    "RMatForTokenClassification",
    "RMatModel",
]
