"""How far to trust a prediction: intervals, calibrated classes and the domain, numbers of a model.

Everything follows from predictions of rows that were held out, and from the molecules it learned
from. `RMatTrust` keeps both beside the weights, so that whatever loads these has them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .configuration_rmat import DUMMY_NODE_IDX, FINGERPRINT_SIZE, RMatConfig
from .transforms_rmat import undo_label_transforms

# Share of intervals and sets that hold the truth, unless another is asked for.
DEFAULT_COVERAGE = 0.9
# Bonds from an atom to the end of its environments; that of ECFP4 (doi 10.1021/ci100050t).
ENVIRONMENT_RADIUS = 2
BITS_PER_BYTE = 8
# Points of the scale of errors against novelty.
NUM_KNOTS = 20
# References compared at a time.
_CHUNK_SIZE = 4096
# Products of two numbers below it fit into int64, on every device.
_PRIME = 2**31 - 1
_FACTORS = (1103515245, 48271, 16807)


def compute_environment_bits(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return which of 2,048 hashed environments of up to two bonds a molecule has.

    The definition of ECFP4, on what the model itself sees of atoms and bonds: two molecules that
    only their conformers tell apart have the same bits.

    Args:
        inputs: Of a model; `node_features`, `bond_types` and `attention_mask` are read.

    Returns:
        Bools `(batch_size, 2048)`.
    """
    node_features, bonds = inputs["node_features"].long(), inputs["bond_types"].long()
    mask = inputs.get("attention_mask")
    is_atom = (torch.ones_like(bonds[:, 0]) if mask is None else mask) != 0
    is_atom[:, DUMMY_NODE_IDX] = False
    rows, nodes = is_atom.nonzero(as_tuple=True)
    columns = torch.arange(1, node_features.shape[-1] + 1, device=node_features.device)
    codes = _mix((node_features * _mix(columns)).sum(-1))
    size = (len(node_features), FINGERPRINT_SIZE)
    bits = torch.zeros(size, dtype=torch.bool, device=node_features.device)
    for radius in range(ENVIRONMENT_RADIUS + 1):
        bits[rows, codes[rows, nodes] % FINGERPRINT_SIZE] = True
        neighbors = _mix(codes[:, None, :] + _mix(bonds + radius))
        neighbors = neighbors.masked_fill(bonds == 0, 0).sum(-1) % _PRIME
        codes = _mix(codes * _FACTORS[1] + neighbors)
    return bits


def _mix(codes: torch.Tensor) -> torch.Tensor:
    """Return hashes of non-negative integers, below 2**31."""
    scrambled = (codes % _PRIME * _FACTORS[0] + _FACTORS[2]) % _PRIME
    return (scrambled * scrambled + scrambled) % _PRIME


def pack_bits(bits: torch.Tensor) -> torch.Tensor:
    """Return bools `(num_rows, 2048)` as uint8 `(num_rows, 256)`."""
    shifts = torch.arange(BITS_PER_BYTE, device=bits.device)
    values = bits.unflatten(1, (-1, BITS_PER_BYTE)).long() << shifts
    return values.sum(-1).to(torch.uint8)


def compute_similarities(bits: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """Return the Tanimoto similarities `(batch_size, num_references)` of bits to packed ones."""
    # bits that no molecule of the batch has are common to none
    columns = bits.any(0).nonzero()[:, 0]
    own, found = bits[:, columns].float(), []
    places, shifts = columns // BITS_PER_BYTE, (columns % BITS_PER_BYTE).to(torch.uint8)
    bytes_of = torch.arange(256, device=bits.device)
    num_bits = torch.stack([(bytes_of >> it) & 1 for it in range(BITS_PER_BYTE)]).sum(0)
    for chunk in packed.split(_CHUNK_SIZE):
        # rows of bytes in a row are read several times faster than columns
        others = ((chunk.T.contiguous().index_select(0, places) >> shifts[:, None]) & 1).float()
        sizes = num_bits.index_select(0, chunk.flatten().int()).view(chunk.shape).sum(1)
        common = own @ others
        found.append(common / (own.sum(1)[:, None] + sizes - common).clamp_min(1))
    return torch.cat(found, dim=1)


class RMatTrust(nn.Module):
    """Held-out errors and the molecules of training as buffers, sized by `config.trust`.

    A regression's interval at any coverage is its value ± a quantile of the held-out
    `|error| / scale` (split conformal prediction, arXiv 2107.07511). The scale of a molecule is a
    non-decreasing function of its novelty, times the standard deviation if the model gives one.
    Probabilities are Venn-ABERS (arXiv 1511.00213), sets of classes conformal for each class.

    Args:
        config ([`RMatConfig`]): With `trust`.
        vector_size: Of the molecule vectors.
    """

    # models that hold one collect this: half precision leaves its numbers alone
    _keep_in_fp32_modules_strict = ["trust_head"]

    def __init__(self, config: RMatConfig, *, vector_size: int) -> None:
        super().__init__()
        trust: Any = config.trust
        self.kind, self.num_rows = trust["kind"], list(trust["num_rows"])
        self.is_regression = config.problem_type in (None, "regression")
        self.is_single_label = config.problem_type == "single_label_classification"
        num_outputs, most_rows = len(config.output_names), max(self.num_rows, default=0)
        num_references = trust["num_references"]
        # CODEPATH: models finetuned with `--trust centers`.
        if self.kind == "centers":
            self.centers = nn.Buffer(torch.zeros(num_references, vector_size))
            self.vector_mean = nn.Buffer(torch.zeros(vector_size))
            self.vector_std = nn.Buffer(torch.ones(vector_size))
            self.distance_scale = nn.Buffer(torch.ones(1))
        else:
            size = FINGERPRINT_SIZE // BITS_PER_BYTE
            self.fingerprints = nn.Buffer(torch.zeros(num_references, size, dtype=torch.uint8))
        self.scores = nn.Buffer(torch.zeros(num_outputs, most_rows))
        # CODEPATH: a regression has the scale of errors, classes what is calibrated.
        if self.is_regression:
            self.novelty_knots = nn.Buffer(torch.zeros(num_outputs, NUM_KNOTS))
            self.scale_knots = nn.Buffer(torch.ones(num_outputs, NUM_KNOTS))
        else:
            self.is_positive = nn.Buffer(torch.zeros(num_outputs, most_rows, dtype=torch.uint8))
            # of a new score in each gap between two that are known: as if it were 0, or 1
            self.low = nn.Buffer(torch.zeros(num_outputs, most_rows + 1))
            self.high = nn.Buffer(torch.zeros(num_outputs, most_rows + 1))

    def compute_novelty(self, inputs: Mapping[str, torch.Tensor], vectors: Any) -> torch.Tensor:
        """Return 0 for a molecule of training, up to 1 for one that is like none of them.

        With fingerprints 1 - the largest Tanimoto similarity; with centers d / (1 + d) of the
        distance to the nearest, in units of its median on train.
        """
        # CODEPATH: as in `__init__`.
        if self.kind == "fingerprints":
            bits = compute_environment_bits(inputs)
            return 1 - compute_similarities(bits, self.fingerprints).amax(1).double()
        distances = self.compute_distances(vectors)
        return distances / (1 + distances)

    def compute_distances(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the distance of each vector to the nearest center."""
        scaled = (vectors.double() - self.vector_mean) / self.vector_std
        nearest = torch.cdist(scaled, self.centers.double()).amin(1)
        return nearest / self.distance_scale.double()

    def compute_scale(self, novelty: torch.Tensor, variance: torch.Tensor | None) -> torch.Tensor:
        """Return how large errors are at a novelty, `(batch_size, num_labels)`."""
        scales = [
            _interpolate(novelty, knots=knots.double(), values=values.double())
            for knots, values in zip(self.novelty_knots, self.scale_knots, strict=True)
        ]
        scale = torch.stack(scales, dim=1)
        # CODEPATH: kernel heads say how sure they are; a network alone does not.
        return scale if variance is None else scale * variance.double().sqrt()

    def find_quantiles(self, coverage: float) -> list[float]:
        """Return the score of each label that a share of new ones stays below, NaN without rows.

        Raises:
            ValueError: There are too few held-out rows for that share.
        """
        quantiles = []
        for scores, num_rows in zip(self.scores, self.num_rows, strict=True):
            rank = math.ceil((num_rows + 1) * coverage - 1e-9)
            if num_rows and not 0 < rank <= num_rows:
                raise ValueError(
                    f"coverage {coverage} is out of reach: {num_rows} rows that were held out "
                    f"carry at most {math.floor(1000 * num_rows / (num_rows + 1)) / 1000}. "
                    "Ask for less, or finetune with more rows or folds."
                )
            quantiles.append(float(scores[rank - 1]) if num_rows else math.nan)
        return quantiles

    def forward(
        self,
        inputs: Mapping[str, torch.Tensor],
        logits: torch.Tensor,
        *,
        coverage: float,
        variance: torch.Tensor | None = None,
        vectors: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return how far to trust the outputs of a batch.

        Args:
            inputs: Of the model.
            logits, variance: Its outputs, `(batch_size, num_outputs)`.
            coverage: Share of intervals and sets that are to hold the truth.
            vectors: Of the molecules, `(batch_size, vector_size)`; needed with centers.

        Returns:
            Of a regression `lower` and `upper`, `(batch_size, num_labels)`, the ends of the
            intervals, NaN of a label without enough rows that were held out. Of classes
            `probabilities`, calibrated, `(batch_size, num_outputs)`, and `is_possible`: whether a
            class is in the conformal set, of labels of their own `(batch_size, 2 * num_outputs)`,
            the classes 1 of all and then the classes 0. Of both `novelty`, `(batch_size, 1)`,
            alone if no label has enough rows that were held out.

        Raises:
            ValueError: As [`find_quantiles`].
        """
        novelty = self.compute_novelty(inputs, vectors)
        # CODEPATH: models finetuned with too few rows of valid, and without folds.
        if not any(self.num_rows):
            return {"novelty": novelty[:, None]}
        # CODEPATH: as in `__init__`.
        if self.is_regression:
            half = novelty.new_tensor(self.find_quantiles(coverage))
            half = half * self.compute_scale(novelty, variance)
            ends = {"lower": logits.double() - half, "upper": logits.double() + half}
            return {**ends, "novelty": novelty[:, None]}
        scores = compute_class_scores(logits.double(), is_single_label=self.is_single_label)
        judged = [
            self._judge(idx, row, error_rate=1 - coverage) for idx, row in enumerate(scores.T)
        ]
        probabilities, may_be, may_not_be = (
            torch.stack(it, dim=1).double() for it in zip(*judged, strict=True)
        )
        # CODEPATH: classes of one label exclude each other, labels have two classes each.
        if self.is_single_label:
            probabilities = probabilities / probabilities.sum(1, keepdim=True)
        else:
            may_be = torch.cat((may_be, may_not_be), dim=1)
        classes = {"probabilities": probabilities, "is_possible": may_be}
        return {**classes, "novelty": novelty[:, None]}

    def _judge(
        self, output: int, scores: torch.Tensor, *, error_rate: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the probability of an output, and whether it may be 1 and may be 0."""
        num_rows = self.num_rows[output]
        known = self.scores[output, :num_rows].double()
        places = torch.searchsorted(known, scores.contiguous(), right=True)
        low, high = self.low[output, places].double(), self.high[output, places].double()
        # of the rows that are 1 those with as low a score, of the others those with as high a one
        counts = nn.functional.pad(self.is_positive[output, :num_rows].long().cumsum(0), (1, 0))
        num_positive = counts[-1]
        num_negative = num_rows - num_positive
        first = torch.searchsorted(known, scores.contiguous())
        num_above = num_negative - (first - counts[first])
        return (
            high / (1 - low + high),
            (counts[places] + 1) / (num_positive + 1) > error_rate,
            (num_above + 1) / (num_negative + 1) > error_rate,
        )


def compute_class_scores(logits: torch.Tensor, *, is_single_label: bool) -> torch.Tensor:
    """Return the log odds of each output; of one label's classes against the others."""
    if not is_single_label:
        return logits
    shares = logits.log_softmax(-1)
    return shares - torch.log1p(-shares.exp().clamp_max(1 - 1e-12))


def _interpolate(
    points: torch.Tensor, *, knots: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Return a piecewise linear function, constant outside of its knots."""
    last = len(knots) - 1
    right = torch.searchsorted(knots, points.contiguous()).clamp(1, last)
    left = right - 1
    width = (knots[right] - knots[left]).clamp_min(1e-12)
    share = ((points - knots[left]) / width).clamp(0, 1)
    return values[left] + share * (values[right] - values[left])


@contextmanager
def kept_exact(model: Any) -> Iterator[None]:
    """Leave what was fitted as wide as it is, whatever `half()` or `to(dtype)` do to the weights.

    These are the buffers of what `from_pretrained(dtype=...)` leaves in float32.
    """
    owners = [getattr(model, name, None) for name in model._keep_in_fp32_modules_strict]
    fitted = [it._buffers for owner in owners if owner is not None for it in owner.modules()]
    before = [dict(buffers) for buffers in fitted]
    yield
    for buffers, wide in zip(fitted, before, strict=True):
        for name, value in buffers.items():
            if value is not None and value.dtype.itemsize < wide[name].dtype.itemsize:
                buffers[name] = wide[name].to(value.device)


def build_trust(model: Any, encoder: Any) -> RMatTrust | None:
    """Return the trust of a model with a head, with the numbers of molecules of its configuration.

    A member of an ensemble has the configuration of that, and no trust of its own.
    """
    config = model.config
    # CODEPATH: models finetuned with `--trust fingerprints` or `--trust centers`.
    if config.trust is None or not is_whole(model) or encoder.pooler is None:
        return None
    return RMatTrust(config, vector_size=encoder.pooler.output_size)


def find_encoder(model: Any) -> Any:
    """Return the encoder of a model, of an ensemble that of its first member."""
    return getattr(model, "members", [model])[0].base_model


def find_trust(model: Any) -> RMatTrust | None:
    """Return the trust of the labels that a model has now: with another adapter it has others."""
    # CODEPATH: models with several adapters, of which not all have trust.
    return None if model.config.trust is None else getattr(model, "trust_head", None)


def is_whole(model: Any) -> bool:
    """Return whether a configuration is a model's own, and not that of its ensemble."""
    return bool(model.config.model_type == type(model).config_class.model_type)


# What a model says of a batch, whoever asks


def describe_blocks(model: Any, *, coverage: float | None = None) -> dict[str, int]:
    """Return what [`predict_blocks`] gives for a model of molecules: name → number of columns."""
    config, num_outputs = model.config, len(model.config.output_names)
    blocks = {"values": num_outputs}
    # CODEPATH: ensembles and kernel heads.
    if config.gives_spread and is_whole(model):
        blocks["spread"] = num_outputs
    trust = find_trust(model)
    # CODEPATH: as in `build_trust`.
    if coverage is None or trust is None:
        return blocks
    # CODEPATH: as in `forward` of the trust.
    if not any(trust.num_rows):
        return {**blocks, "novelty": 1}
    if not model.meaning.is_probability:
        return {**blocks, "lower": num_outputs, "upper": num_outputs, "novelty": 1}
    num_sets = num_outputs * (2 - trust.is_single_label)
    return {**blocks, "probabilities": num_outputs, "is_possible": num_sets, "novelty": 1}


def predict_blocks(
    model: Any, inputs: Mapping[str, torch.Tensor], *, coverage: float | None = None
) -> dict[str, torch.Tensor]:
    """Return values or probabilities of a batch in float64, their spread, and how far to trust it.

    Args:
        model: One with a head for labels.
        inputs: Of the model.
        coverage: As of [`RMatTrust`]; `None` for no trust.
    """
    trust, meaning = find_trust(model), model.meaning
    with _record_vectors(model, trust) as vectors:
        output = model(**inputs, return_dict=True)
    blocks = {"values": meaning.compute_values(output.logits.double())}
    variance = output.get("variance")
    # CODEPATH: kernel heads give a variance, ensembles the logits of members.
    if variance is not None:
        blocks["spread"] = variance.double().sqrt()
    elif "member_logits" in output:
        members = meaning.compute_values(output.member_logits.double())
        blocks["spread"] = members.std(1, correction=0)
    if trust is not None and coverage is not None:
        options: dict[str, Any] = {"variance": variance, "vectors": vectors[0] if vectors else None}
        blocks |= trust(inputs, output.logits, coverage=coverage, **options)
    # CODEPATH: models finetuned with `--label-transform`.
    if model.config.label_transforms is None:
        return blocks
    shown = ("values", "lower", "upper")
    undone = {
        name: undo_label_transforms(blocks[name], model.config) for name in shown if name in blocks
    }
    if "lower" in undone:
        # one that decreases swaps the ends
        ends = torch.stack((undone["lower"], undone["upper"]))
        undone |= {"lower": ends.amin(0), "upper": ends.amax(0)}
    return blocks | undone


def list_possible_classes(config: RMatConfig, is_possible: Sequence[float]) -> dict[str, list[str]]:
    """Return the conformal set of each label of a molecule, from `is_possible` of [`RMatTrust`]."""
    names, size = config.output_names, len(config.output_names)
    # CODEPATH: as in `forward` of the trust.
    if config.label_name is not None:
        chosen = [name for name, it in zip(names, is_possible, strict=True) if it]
        return {config.label_name: chosen}
    pairs = zip(is_possible[size:], is_possible[:size], strict=True)
    return {
        name: ["0"] * bool(may_not_be) + ["1"] * bool(may_be)
        for name, (may_not_be, may_be) in zip(names, pairs, strict=True)
    }


@contextmanager
def _record_vectors(model: Any, trust: RMatTrust | None) -> Iterator[list[torch.Tensor]]:
    """Collect the molecule vectors of a model, or of its first member, where trust needs them."""
    found: list[torch.Tensor] = []
    # CODEPATH: models finetuned with `--trust centers`.
    if trust is None or trust.kind != "centers":
        yield found
        return
    handle = find_encoder(model).pooler.register_forward_hook(lambda *call: found.append(call[-1]))
    try:
        yield found
    finally:
        handle.remove()
