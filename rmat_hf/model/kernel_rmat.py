"""What predicts with a Gaussian process on vectors, counts and descriptors."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_rmat import (
    DUMMY_NODE_IDX,
    FINGERPRINT_SIZE,
    NUM_ENVIRONMENTS,
    RMatKernelConfig,
)
from .covariates_rmat import count_covariates
from .losses_rmat import restore_labels, restore_variances
from .modeling_rmat import RMatDescriptorScaler, RMatPredictor

# A standardized component of a vector further out than this is an outlier.
MAX_SCALED_VECTOR = 8.0


@dataclass
class RMatKernelOutput(ModelOutput):
    """Output of [`RMatKernelForSequenceClassification`].

    Args:
        loss: As of [`RMatForSequenceClassification`].
        logits: `(batch_size, num_labels)`; of a regression in the user's units.
        variance: Of a regression: variance of each label in the square of its units, of the noise
            of a measurement too, `(batch_size, num_labels)`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    variance: torch.Tensor | None = None


def compute_squared_distances(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the squared Euclidean distances `(num_rows, num_others)`."""
    squares = (rows**2).sum(1)[:, None] + (others**2).sum(1)
    return (squares - 2 * rows @ others.T).clamp_min(0)


def _compute_mean_distance(rows: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance of two rows, without the matrix of all."""
    return 2 * rows.var(0, correction=0).sum()


def compute_kernel(
    distances: list[torch.Tensor], log_weights: torch.Tensor, log_widths: torch.Tensor
) -> torch.Tensor:
    """Return the sum of one RBF kernel per kind of features.

    Args:
        distances: Squared, in units of their mean on train, `(num_rows, num_others)` per kind.
        log_weights, log_widths: Of each kind, `(num_kinds,)`.
    """
    weights, rates = log_weights.exp(), 0.5 * (-2 * log_widths).exp()
    return torch.stack(
        [weights[idx] * torch.exp(-rates[idx] * it) for idx, it in enumerate(distances)]
    ).sum(0)


class RMatEnvironments(nn.Module):
    """Counts the atoms of each kind: the nearest of the centers, after each of a few layers."""

    def __init__(self, config: RMatKernelConfig) -> None:
        super().__init__()
        num_layers, size = config.num_environment_layers, config.hidden_size
        self.state_mean = nn.Buffer(torch.zeros(num_layers, size))
        self.state_std = nn.Buffer(torch.ones(num_layers, size))
        self.centers = nn.Buffer(torch.zeros(num_layers, NUM_ENVIRONMENTS, size))

    def forward(
        self, hidden_states: tuple[torch.Tensor, ...], attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the counts `(batch_size, 2048)`, uint8.

        Args:
            hidden_states: Input and output of every layer, `(batch_size, num_nodes, hidden_size)`.
            attention_mask: `(batch_size, num_nodes)`.
        """
        is_atom = attention_mask != 0
        is_atom[:, DUMMY_NODE_IDX] = False
        rows = is_atom.nonzero()[:, 0]
        counts = torch.zeros(len(is_atom), FINGERPRINT_SIZE, device=is_atom.device)
        for layer, states in enumerate(hidden_states[1 : 1 + len(self.centers)]):
            scaled = (states[is_atom].float() - self.state_mean[layer]) / self.state_std[layer]
            kinds = compute_squared_distances(scaled, self.centers[layer]).argmin(1)
            places = (rows, kinds + layer * NUM_ENVIRONMENTS)
            counts.index_put_(places, counts.new_ones(len(rows)), accumulate=True)
        return counts.clamp_max(255).to(torch.uint8)


class RMatKernelHead(nn.Module):
    """The mean and variance of an exact Gaussian process, one for each label, in float64.

    Its kernel is the sum of one RBF kernel of each kind of features: standardized vectors, scaled
    descriptors, logarithms of 1 + counts. It keeps the features of its rows, counts as the columns
    that are not 0, and `coefficients = (K + noise)^-1 y` (Rasmussen and Williams, eq. 2.25).
    """

    def __init__(self, config: RMatKernelConfig, *, vector_size: int) -> None:
        super().__init__()
        self.kinds, self.counted = config.kernel_features, config.counted
        self.num_covariates = count_covariates(config.covariates)
        num_rows, num_kinds = config.num_train_rows, len(self.kinds)
        num_labels, num_entries = len(config.output_names), config.num_count_entries
        self.vectors = nn.Buffer(torch.zeros(num_rows, vector_size))
        self.vector_mean = nn.Buffer(torch.zeros(vector_size))
        self.vector_std = nn.Buffer(torch.ones(vector_size))
        self.descriptors = nn.Buffer(torch.zeros(num_rows, config.num_molecule_descriptors))
        self.count_offsets = nn.Buffer(torch.zeros(num_rows + 1, dtype=torch.int32))
        self.count_columns = nn.Buffer(torch.zeros(num_entries, dtype=torch.int32))
        self.count_values = nn.Buffer(torch.zeros(num_entries, dtype=torch.uint8))
        self.distance_scales = nn.Buffer(torch.ones(num_kinds))
        self.is_labeled = nn.Buffer(torch.zeros(num_labels, num_rows, dtype=torch.uint8))
        self.coefficients = nn.Buffer(torch.zeros(num_labels, num_rows))
        self.log_weights = nn.Buffer(torch.zeros(num_labels, num_kinds))
        self.log_widths = nn.Buffer(torch.zeros(num_labels, num_kinds))
        self.log_noise = nn.Buffer(torch.zeros(num_labels))
        self.output_scale = nn.Buffer(torch.ones(num_labels))
        self.output_shift = nn.Buffer(torch.zeros(num_labels))
        # CODEPATH: models fitted with `--weight-column`.
        has_weights = config.has_row_weights
        self.row_weights = nn.Buffer(torch.ones(num_rows)) if has_weights else None
        self.solved: tuple[list[torch.Tensor], list[torch.Tensor]] | None = None

    def keep_rows(
        self,
        vectors: torch.Tensor,
        counts: torch.Tensor | None,
        descriptors: torch.Tensor | None,
    ) -> None:
        """Keep the features of the rows of train, of the shapes that [`forward`] takes."""
        self.vectors.copy_(vectors)
        std = vectors.double().std(0, correction=0)
        self.vector_mean.copy_(vectors.double().mean(0))
        self.vector_std.copy_(torch.where(std > 0, std, 1.0))
        if descriptors is not None:
            self.descriptors.copy_(descriptors)
        if counts is not None:
            rows, columns = counts.nonzero(as_tuple=True)
            self.count_offsets[1:] = rows.bincount(minlength=len(counts)).cumsum(0)
            self.count_columns.copy_(columns)
            self.count_values.copy_(counts[rows, columns])
        features = self.list_row_features()
        means = [_compute_mean_distance(it) for it in features]
        self.distance_scales.copy_(torch.stack(means).clamp_min(torch.finfo(torch.float32).tiny))
        self.solved = None

    def list_row_features(self) -> list[torch.Tensor]:
        """Return the prepared features of the rows of train."""
        num_rows, device = len(self.vectors), self.vectors.device
        counts = torch.zeros(
            *(num_rows, FINGERPRINT_SIZE * len(self.counted)), dtype=torch.uint8, device=device
        )
        sizes = self.count_offsets.diff()
        rows = torch.arange(num_rows, device=device).repeat_interleave(sizes)
        counts[rows, self.count_columns] = self.count_values
        return self.prepare(self.vectors, counts, self.descriptors)

    def prepare(
        self,
        vectors: torch.Tensor,
        counts: torch.Tensor | None,
        descriptors: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """Return the features of each kind as the kernel compares them, in float64."""
        scaled = (vectors.double() - self.vector_mean) / self.vector_std
        found = {"vectors": scaled.clamp(-MAX_SCALED_VECTOR, MAX_SCALED_VECTOR)}
        if descriptors is not None:
            first = descriptors.shape[1] - self.num_covariates
            found["descriptors"] = descriptors[:, :first].double()
            found["covariates"] = descriptors[:, first:].double()
        if counts is not None:
            for idx, name in enumerate(self.counted):
                columns = slice(idx * FINGERPRINT_SIZE, (idx + 1) * FINGERPRINT_SIZE)
                found[name] = counts[:, columns].double().log1p()
        return [found[kind] for kind in self.kinds]

    def compute_distances(
        self, features: list[torch.Tensor], others: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return the squared distances of each kind, in units of their mean on train."""
        pairs = zip(features, others, self.distance_scales.double(), strict=True)
        return [compute_squared_distances(one, other) / scale for one, other, scale in pairs]

    # what is kept serves gradients as well
    @torch.inference_mode(False)
    @torch.no_grad()
    def solve(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the features of the rows and the Cholesky factor of each label, from then on kept.

        They follow from the buffers, and are too large to be saved with these.
        """
        if self.solved is None or self.solved[0][0].device != self.vectors.device:
            features, factors = self.list_row_features(), []
            for label, known in enumerate(self.is_labeled.bool()):
                rows = [it[known] for it in features]
                distances = self.compute_distances(rows, rows)
                factors.append(self.factorize(distances, label, rows=known))
            self.solved = features, factors
        return self.solved

    def list_noise_scales(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the variances of the noise of rows, in units of that of a row of weight 1."""
        if self.row_weights is None:
            return torch.ones(len(self.vectors), device=self.vectors.device).double()[rows]
        return 1 / self.row_weights[rows].double()

    def factorize(
        self, distances: list[torch.Tensor], label: int, *, rows: torch.Tensor
    ) -> torch.Tensor:
        """Return the Cholesky factor of the covariance of the measurements of rows."""
        kernel = self.compute_label_kernel(distances, label)
        noise = self.log_noise[label].double().exp() * self.list_noise_scales(rows)
        return torch.linalg.cholesky(kernel + noise.diag())

    def compute_label_kernel(self, distances: list[torch.Tensor], label: int) -> torch.Tensor:
        """Return the kernel of a label."""
        log_weights, log_widths = self.log_weights[label], self.log_widths[label]
        return compute_kernel(distances, log_weights.double(), log_widths.double())

    def compute_variance(
        self, kernel: torch.Tensor, factor: torch.Tensor, *, label: int
    ) -> torch.Tensor:
        """Return the variance of measurements, from the kernel with the rows (eq. 2.26)."""
        explained = torch.linalg.solve_triangular(factor, kernel.T, upper=False)
        prior = self.log_weights[label].double().exp().sum()
        left = (prior - (explained**2).sum(0)).clamp_min(0)
        return left + self.log_noise[label].double().exp()

    def forward(
        self,
        vectors: torch.Tensor,
        counts: torch.Tensor | None = None,
        descriptors: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and variance, in standard deviations of a regression's labels.

        Args:
            vectors: Of the encoder, `(batch_size, vector_size)`.
            counts: Of the fingerprints and, behind them, environments,
                `(batch_size, 2048 * num_counted)`.
            descriptors: Scaled, `(batch_size, num_molecule_descriptors)`.

        Returns:
            Two tensors `(batch_size, num_labels)`, float64. Of classes the mean is a logit.
        """
        row_features, factors = self.solve()
        distances = self.compute_distances(self.prepare(vectors, counts, descriptors), row_features)
        means, variances = [], []
        for label, (known, factor) in enumerate(zip(self.is_labeled.bool(), factors, strict=True)):
            kernel = self.compute_label_kernel([it[:, known] for it in distances], label)
            means.append(kernel @ self.coefficients[label, known].double())
            variances.append(self.compute_variance(kernel, factor, label=label))
        scale = self.output_scale.double()
        mean = torch.stack(means, dim=1) * scale + self.output_shift.double()
        return mean, torch.stack(variances, dim=1) * scale**2


class RMatKernelForSequenceClassification(RMatPredictor):
    """Predicts properties of a molecule with a Gaussian process on the vectors of an encoder.

    [`fit_kernel_head`] makes one. Counts of fingerprints and descriptors may have a kernel beside
    that of the vectors. It keeps the features of its training molecules: who has the model can
    reconstruct them.

    Args:
        config ([`RMatKernelConfig`]): That of the encoder with the labels, and what has a kernel.

    Raises:
        ValueError: As [`RMatForSequenceClassification`]; the inputs lack the fingerprint counts or
            descriptors that the model was fitted with; it is given labels in training mode.

    Example:
    ```python
    >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    >>> config = RMatKernelConfig(**sizes, num_labels=1, problem_type="regression")
    >>> model = RMatKernelForSequenceClassification(config)
    >>> batch = RMatProcessor(geometry="bounds")(["CCO", "CCN"], return_tensors="pt")
    >>> model(**batch).variance.shape  # (batch_size, num_labels)
    torch.Size([2, 1])

    ```
    """

    config: RMatKernelConfig
    config_class = RMatKernelConfig
    _auto_class = "AutoModelForSequenceClassification"
    saved_auto_map = {
        "AutoConfig": "configuration_rmat.RMatKernelConfig",
        "AutoModelForSequenceClassification": "kernel_rmat.RMatKernelForSequenceClassification",
    }
    _keep_in_fp32_modules_strict = ["key_pairs", "value_pairs", "classifier", "environments_head"]

    @property
    def reads_fingerprints(self) -> bool:
        """Whether it needs `fingerprint_counts`."""
        return bool(self.config.fingerprints)

    classifier: Any

    def __init__(self, config: RMatKernelConfig) -> None:
        super().__init__(config)
        # CODEPATH: stacks, and models fitted with `--kernel-features descriptors`.
        self.descriptor_scaler = RMatDescriptorScaler(config) if config.reads_descriptors else None
        # CODEPATH: models fitted with `--kernel-features environments`.
        has_environments = config.num_environment_layers > 0
        self.environments_head = RMatEnvironments(config) if has_environments else None
        self.classifier = RMatKernelHead(config, vector_size=self.rmat.pooler.output_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RMatKernelHead):
            ones = ("vector_std", "distance_scales", "output_scale", "row_weights")
            for name, buffer in module.named_buffers(recurse=False):
                (init.ones_ if name in ones else init.zeros_)(buffer)
        elif isinstance(module, RMatEnvironments):
            init.zeros_(module.state_mean)
            init.ones_(module.state_std)
            init.zeros_(module.centers)

    @can_return_tuple
    def forward(
        self,
        node_features: torch.Tensor,
        bond_types: torch.Tensor,
        topological_distances: torch.Tensor,
        interatomic_distances: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        molecule_descriptors: torch.Tensor | None = None,
        fingerprint_counts: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> RMatKernelOutput:
        """Predict the properties of a padded batch of molecules.

        Args:
            node_features, bond_types, topological_distances, interatomic_distances, attention_mask:
                As of [`RMatModel`].
            molecule_descriptors, labels: As of [`RMatForSequenceClassification`].
            fingerprint_counts: `(batch_size, 2048 * num_fingerprints)`, of those with a kernel.
            kwargs: Options of [`RMatModel`].
        """
        inputs = (node_features, bond_types, topological_distances, interatomic_distances)
        read = (attention_mask, molecule_descriptors, fingerprint_counts)
        mean, variance = self.predict_standardized(inputs, *read, **kwargs)
        return self.build_output(mean, variance, labels)

    def predict_standardized(
        self, inputs: tuple[torch.Tensor, ...], *read: torch.Tensor | None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and variance of what [`read_features`] takes, as [`RMatKernelHead`]."""
        mean, variance = self.classifier(*self.read_features(inputs, *read, **kwargs))
        return mean, variance

    def read_features(
        self,
        inputs: tuple[torch.Tensor, ...],
        attention_mask: torch.Tensor | None,
        molecule_descriptors: torch.Tensor | None,
        fingerprint_counts: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return vectors, counts and scaled descriptors, as the head takes them."""
        if self.environments_head is not None:
            kwargs["output_hidden_states"] = True
        outputs = self.rmat(*inputs, attention_mask, return_dict=True, **kwargs)
        needed = [(self.descriptor_scaler is not None, molecule_descriptors)]
        needed.append((len(self.config.fingerprints) > 0, fingerprint_counts))
        if any(is_needed and given is None for is_needed, given in needed):
            raise ValueError(
                "molecule_descriptors or fingerprint_counts are missing. Use the processor saved "
                "with the model."
            )
        descriptors = None
        if self.descriptor_scaler is not None:
            descriptors = self.descriptor_scaler(molecule_descriptors)
        # CODEPATH: a kernel head on vectors alone reads no fingerprints.
        counts = fingerprint_counts if self.config.fingerprints else None
        if self.environments_head is not None:
            bond_types = inputs[1]
            mask = torch.ones_like(bond_types[:, 0]) if attention_mask is None else attention_mask
            own = self.environments_head(outputs.hidden_states, mask)
            counts = own if counts is None else torch.cat((counts, own), dim=1)
        return outputs.pooler_output, counts, descriptors

    def build_output(
        self, mean: torch.Tensor, variance: torch.Tensor, labels: torch.Tensor | None
    ) -> RMatKernelOutput:
        """Return the output of standardized means and variances, or of logits."""
        if self.training and labels is not None:
            raise ValueError(
                "A kernel head or a stack is solved, not trained by gradients: these would change "
                "the encoder under it. fit_kernel_head, fit_stack_head or finetune(...) fits one."
            )
        head_output = mean.float()
        loss = None if labels is None else self.compute_loss(head_output, labels)
        if self.meaning.is_probability:
            return RMatKernelOutput(loss, head_output)
        logits = restore_labels(head_output, self.config)
        variance = restore_variances(variance.float(), logits, config=self.config)
        return RMatKernelOutput(loss, logits, variance)
