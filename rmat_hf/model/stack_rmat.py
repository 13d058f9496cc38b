"""What predicts with a Gaussian process and a forest together, and perhaps with networks."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .configuration_rmat import (
    FINGERPRINT_SIZE,
    FOREST_FINGERPRINT,
    RMatEnsembleConfig,
    RMatStackConfig,
)
from .covariates_rmat import count_covariates
from .ensemble_rmat import RMatEnsembleForSequenceClassification, get_member_fields
from .kernel_rmat import RMatKernelForSequenceClassification
from .losses_rmat import build_label_scaling

# In the order of their weights; the last one is there if the configuration has networks.
STACK_MEMBERS = ("kernel", "forest", "networks")


class RMatForest(nn.Module):
    """Trees as arrays: one node after the other, each before those on its left, then its right.

    A node sends a molecule to the left, the node behind it, if the column of its features is at
    most the threshold. `columns` is -1 at a leaf, whose `values` count.
    """

    def __init__(self, config: RMatStackConfig) -> None:
        super().__init__()
        num_labels, num_nodes = len(config.output_names), config.num_tree_nodes
        # CODEPATH: the classes of one label have a forest together, each label else its own.
        is_shared = config.problem_type == "single_label_classification"
        num_forests, width = (1, num_labels) if is_shared else (num_labels, 1)
        self.max_depth = config.max_tree_depth
        self.roots = nn.Buffer(torch.zeros(num_forests, config.num_trees, dtype=torch.int32))
        self.columns = nn.Buffer(torch.zeros(num_nodes, dtype=torch.int32))
        self.right_nodes = nn.Buffer(torch.zeros(num_nodes, dtype=torch.int32))
        self.thresholds = nn.Buffer(torch.zeros(num_nodes))
        self.values = nn.Buffer(torch.zeros(num_nodes, width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the mean over the trees of each forest, float64.

        Args:
            features: `(batch_size, num_columns)`, float32.

        Returns:
            `(batch_size, num_labels)`: standardized labels, or from -1 to 1 for classes.
        """
        num_rows = len(features)
        nodes = self.roots.long().flatten().expand(num_rows, -1)
        for _ in range(self.max_depth):
            columns = self.columns[nodes].long()
            goes_left = features.gather(1, columns.clamp_min(0)) <= self.thresholds[nodes]
            below = torch.where(goes_left, nodes + 1, self.right_nodes[nodes])
            nodes = torch.where(columns < 0, nodes, below)
        values = self.values[nodes].double().view(num_rows, *self.roots.shape, -1)
        return values.mean(2).flatten(1)


class RMatMemberWeights(nn.Module):
    """Adds up the outputs of the members."""

    def __init__(self, config: RMatStackConfig) -> None:
        super().__init__()
        num_labels = len(config.output_names)
        # CODEPATH: stacks with networks, of `--head stack+network`.
        num_members = len(STACK_MEMBERS) - (config.num_networks == 0)
        self.weights = nn.Buffer(torch.full((num_members, num_labels), 1 / num_members))
        self.intercepts = nn.Buffer(torch.zeros(num_labels))
        # squared errors of the sum in units of the variance of the kernel head
        self.variance_scale = nn.Buffer(torch.ones(num_labels))

    def forward(
        self, members: list[torch.Tensor], variance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum and its variance, from outputs `(batch_size, num_labels)` of each."""
        pairs = zip(self.weights.double(), members, strict=True)
        total = torch.stack([weights * member for weights, member in pairs]).sum(0)
        return total + self.intercepts.double(), variance * self.variance_scale.double()


class RMatStackForSequenceClassification(RMatKernelForSequenceClassification):
    """Predicts with a kernel head and a forest, each with the weight that held-out rows gave it.

    [`fit_stack_head`] makes one. The forest reads ECFP4 counts and descriptors. As a kernel head it
    keeps the features of its training molecules. `networks`, if there are some, are an ensemble:
    each was finetuned with another fold left out.

    Args:
        config ([`RMatStackConfig`]): That of the kernel head, and the sizes of the other members.

    Raises:
        ValueError: As [`RMatKernelForSequenceClassification`].

    Example:
    ```python
    >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    >>> names = ["MolWt", "TPSA"]
    >>> config = RMatStackConfig(**sizes, num_labels=1, num_molecule_descriptors=len(names))
    >>> model = RMatStackForSequenceClassification(config)
    >>> reading = {"fingerprints": config.fingerprints, "molecule_descriptors": names}
    >>> batch = RMatProcessor(geometry="bounds", **reading)(["CCO", "CCN"], return_tensors="pt")
    >>> model(**batch).logits.shape  # (batch_size, num_labels)
    torch.Size([2, 1])

    ```
    """

    config: RMatStackConfig
    config_class = RMatStackConfig
    saved_auto_map = {
        "AutoConfig": "configuration_rmat.RMatStackConfig",
        "AutoModelForSequenceClassification": "stack_rmat.RMatStackForSequenceClassification",
    }
    _keep_in_fp32_modules_strict = [
        *RMatKernelForSequenceClassification._keep_in_fp32_modules_strict,
        *("forest", "member_weights"),
    ]

    def __init__(self, config: RMatStackConfig) -> None:
        super().__init__(config)
        self.forest = RMatForest(config)
        self.networks = build_networks(config)
        self.member_weights = RMatMemberWeights(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RMatForest):
            for buffer in module.buffers():
                init.zeros_(buffer)
        elif isinstance(module, RMatMemberWeights):
            init.constant_(module.weights, 1 / len(module.weights))
            init.zeros_(module.intercepts)
            init.ones_(module.variance_scale)

    def predict_standardized(
        self, inputs: tuple[torch.Tensor, ...], *read: torch.Tensor | None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted sum of what the members say, and its variance."""
        members, variance = self.predict_members(inputs, *read, **kwargs)
        total, variance = self.member_weights(members, variance)
        return total, variance

    def predict_members(
        self, inputs: tuple[torch.Tensor, ...], *read: Any, **kwargs: Any
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return what each member says, float64, and the variance of the kernel head.

        Both are `(batch_size, num_labels)`, in standard deviations of a regression's labels.
        """
        vectors, counts, descriptors = self.read_features(inputs, *read, **kwargs)
        mean, variance = self.classifier(vectors, counts, descriptors)
        members = [mean, self.forest(self.read_forest_features(counts, descriptors))]
        if self.networks is not None:
            attention_mask, known, _ = read
            first = known.shape[1] - count_covariates(self.config.covariates)
            output = self.networks(*inputs, attention_mask, known[:, first:], return_dict=True)
            members.append(standardize_outputs(output.logits, self.config))
        return members, variance

    def read_forest_features(self, counts: Any, descriptors: Any) -> torch.Tensor:
        """Return what the trees compare, float32 `(batch_size, num_columns)`."""
        start = FINGERPRINT_SIZE * self.config.fingerprints.index(FOREST_FINGERPRINT)
        own = counts[:, start : start + FINGERPRINT_SIZE]
        return torch.cat((own.float(), descriptors.float()), dim=1)


def build_networks(config: RMatStackConfig) -> RMatEnsembleForSequenceClassification | None:
    """Return untrained networks for a stack, if its configuration has some."""
    # CODEPATH: as in `RMatMemberWeights`.
    if config.num_networks == 0:
        return None
    fields = get_member_fields(config) | {"attn_implementation": config._attn_implementation}
    # of what stands beside a molecule they read covariates alone
    fields["num_molecule_descriptors"] = count_covariates(config.covariates)
    own = RMatEnsembleConfig(**fields, num_members=config.num_networks)
    return RMatEnsembleForSequenceClassification(own)


def standardize_outputs(logits: torch.Tensor, config: RMatStackConfig) -> torch.Tensor:
    """Return the logits of networks, float64, as the other members have them."""
    logits = logits.double()
    # CODEPATH: as in `compute_label_loss`.
    if config.label_mean is not None:
        mean, std = build_label_scaling(config, logits)
        logits = (logits - mean) / std
    return logits
