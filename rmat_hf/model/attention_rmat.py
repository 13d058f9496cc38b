r"""Relative molecule self-attention: the equation, its plain form, its fast form.

Source: Maziarka et al., Relative Molecule Self-Attention Transformer, arXiv 2110.05841 and
J. Cheminf. 16:3 (2024), section 3.

**The equation.** Nodes are the dummy node and the heavy atoms of a molecule. One head of width `d`
sees them as `q_i = x_i W^Q`, `k_i = x_i W^K` and `v_i = x_i W^V`. What is known about the pair of
nodes `i` and `j` (bond, neighborhood order and radial basis of their distance, `r_ij`) comes in as
a bias on the keys and one on the values, each from a network of its own with two layers:

    b^K_ij = W^K2 z^K_ij + c^K,    z^K_ij = act(W^K1 r_ij + a^K),    and alike b^V_ij.

All heads share `z`, as wide as one of them. With a learned `u` and `v` per head the score is

    "paper":      e_ij = [q_i . k_j + q_i . b^K_ij + k_j . b^K_ji + u . k_j + v . b^K_ij] / sqrt(d)
    "reference":  e_ij = [q_i . k_j + (q_i + k_i) . b^K_ij] / sqrt(d) + u . k_i + v . b^K_ij

The first is that of the publication, the second that of the authors' code, which their published
weights need. Either way the output of the head is

    o_i = sum_j p_ij (v_j + b^V_ij),    p_i = dropout(softmax_j e_ij).

`pair_relations` says what `r_ij` has, and `pair_terms` whether there are `b^K` ("keys") and `b^V`
("values"). One that is left out is zero, and neither it nor a `v` that meets it has weights.

**The plain form**, [`compute_plain_attention`], is this written down: every `b_ij` of every head is
there, `num_heads * d` numbers a pair. Tests and benchmarks compare with it.

**The fast form**, [`RMatSelfAttention`], never has more than the `d` numbers `z_ij` of a pair:

- `q . b_ij = q . (W z_ij + c) = (W^T q) . z_ij + q . c`: a node's query meets `z`, not `b`.
- A term that is the same for all `j` cancels in the softmax: `q_i . c`, `v . c` and `u . k_i`.
- A pair has no direction, `z_ij = z_ji`: one product with the pairs of a node serves its query and
  its key. What is left of the "paper" form is

      sqrt(d) e_ij = q_i . k_j + (W^T (q_i + v)) . z_ij + (W^T k_j) . z_ji + (u + c) . k_j,

  and of the "reference" form `sqrt(d) e_ij = q_i . k_j + (W^T (q_i + k_i + sqrt(d) v)) . z_ij`.
- `sum_j p_ij b^V_ij = W (sum_j p_ij z_ij) + sum_j p_ij c`: the values are mixed as `z`, and `c` is
  added to the values of the nodes.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_rmat import (
    MASKED_BOND_TYPE,
    NUM_BOND_ORDERS,
    NUM_BOND_TYPES,
    UNREACHABLE_DISTANCE,
    RMatConfig,
)

# Of the authors' code, beside those that transformers has a name for.
ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": nn.ELU, "selu": nn.SELU}


class RMatLowRankLinear(nn.Module):
    """A linear layer in two, with few channels between: thousands of outputs at few weights."""

    def __init__(self, input_size: int, head: dict[str, Any]) -> None:
        super().__init__()
        self.in_proj = nn.Linear(input_size, head["rank"])
        self.out_proj = nn.Linear(head["rank"], head["size"])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return `(..., output_size)`."""
        outputs: torch.Tensor = self.out_proj(self.in_proj(inputs))
        return outputs


def build_head(input_size: int, head: dict[str, Any]) -> nn.Module:
    """Return the layer of a head as `RMatConfig.pretraining_heads` describes it."""
    if "rank" in head:
        return RMatLowRankLinear(input_size, head)
    return nn.Linear(input_size, head["size"])


def build_activation(config: RMatConfig, name: str | None = None) -> nn.Module:
    """Return the activation of a name, by default the one that `hidden_act` gives."""
    name = name or config.hidden_act
    # CODEPATH: leaky_relu with slope 0.1 is the authors' checkpoints'; ACT2FN knows only 0.01.
    if name == "leaky_relu":
        return nn.LeakyReLU(config.leaky_relu_slope, inplace=True)
    # CODEPATH: models of the authors' code with `ffn_activation` ELU or SELU.
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]()
    if name not in ACT2FN:
        known = ", ".join(sorted((*ACT2FN, *ACTIVATIONS)))
        raise ValueError(f"The activation {name!r} is unknown. Choose one of {known}.")
    return ACT2FN[name]


# What is known about a pair


def widen(values: torch.Tensor) -> torch.Tensor:
    """Return the values in float32, or in float64 if that is what they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def compute_radial_basis(
    interatomic_distances: torch.Tensor, *, num_radial_basis: int, cutoff: float, exponent: float
) -> torch.Tensor:
    """Return the enveloped Bessel basis of every distance (arXiv 2003.03123, eq. 7 and 8).

    Args:
        interatomic_distances: `(batch_size, num_nodes, num_nodes)`, in Å. Computed in float32 at
            least: the polynomial overflows below that.
        num_radial_basis: Number of functions, the last axis of the result.
        cutoff: Distance in Å from which on every function is zero.
        exponent: Envelope exponent.
    """
    distances = widen(interatomic_distances)
    # At 1, and so everywhere beyond the cutoff, the envelope is zero.
    scaled = ((distances + 1e-6) / cutoff).clamp(max=1.0)
    power = exponent + 1
    envelope = (
        1.0 / scaled
        - (power + 1) * (power + 2) / 2 * scaled ** (power - 1)
        + power * (power + 2) * scaled**power
        - power * (power + 1) / 2 * scaled ** (power + 1)
    )
    # The authors' frequencies are float32 constants, also when the rest is float64.
    frequencies = math.pi * torch.arange(
        1, num_radial_basis + 1, device=distances.device, dtype=torch.float32
    )
    frequencies = frequencies.to(distances.dtype)
    waves = (scaled.unsqueeze(-1) * frequencies).sin_()
    return waves.mul_(envelope.unsqueeze(-1))


class RMatPairFeatures(nn.Module):
    """What is known about a pair: an integer code for bond and neighborhood, and the distance.

    The table holds the `(bond features, neighborhood order)` part of the pair features for every
    combination of the two, so that a layer multiplies 204 rows instead of every pair.
    """

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        self.config = config
        self.code_features = nn.Buffer(self.compute_code_features(), persistent=False)

    def compute_code_features(self) -> torch.Tensor:
        """Return the features of every code, `(num_codes, bond + neighborhood features)`."""
        num_orders = self.config.num_neighborhood_orders
        bond_features = torch.zeros(NUM_BOND_TYPES, self.config.num_bond_features)
        bond_features[MASKED_BOND_TYPE, 0] = 1.0
        for flags in range(MASKED_BOND_TYPE - 1):
            order, aromatic, conjugated, in_ring = flags // 8, flags // 4, flags // 2, flags
            bond_features[1 + flags, 1 + order] = 1.0
            for column, flag in enumerate((aromatic, conjugated, in_ring), 1 + NUM_BOND_ORDERS):
                bond_features[1 + flags, column] = flag % 2
        bonds = bond_features.repeat_interleave(num_orders, dim=0)
        orders, sizes = torch.eye(num_orders).repeat(NUM_BOND_TYPES, 1), self.config.relation_sizes
        parts = (bonds[:, : sizes["bond"]], orders[:, : sizes["neighborhood"]])
        return torch.cat(parts, dim=1)

    def forward(
        self,
        bond_types: torch.Tensor,
        topological_distances: torch.Tensor,
        interatomic_distances: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the code of every pair and, in float32 at least, the radial basis."""
        bond_types, topological_distances = bond_types.long(), topological_distances.long()
        neighborhood_orders = torch.where(
            topological_distances == UNREACHABLE_DISTANCE,
            self.config.max_neighborhood_order + 1,
            topological_distances.clamp(max=self.config.max_neighborhood_order),
        )
        pair_codes = bond_types * self.config.num_neighborhood_orders + neighborhood_orders
        radial_basis = compute_radial_basis(
            interatomic_distances,
            num_radial_basis=self.config.relation_sizes["distance"],
            cutoff=self.config.distance_cutoff,
            exponent=self.config.radial_envelope_exponent,
        )
        return pair_codes, radial_basis


# The plain form


def compute_plain_attention(
    layer: "RMatSelfAttention",
    hidden_states: torch.Tensor,
    *,
    padding: torch.Tensor,
    pair_features: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a layer returns, computed pair by pair as the equations read.

    Args:
        layer: Whose weights to use.
        hidden_states, padding: As of [`RMatSelfAttention`].
        pair_features: `r` of shape `(batch_size, num_nodes, num_nodes, num_pair_features)`: bond,
            neighborhood order and radial basis side by side, those that take part.
    """
    per_pair = (*pair_features.shape[:3], layer.num_heads, layer.head_size)
    projections, root = (layer.q_proj, layer.k_proj, layer.v_proj), math.sqrt(layer.head_size)
    q, k, values = (
        linear(hidden_states).unflatten(-1, (layer.num_heads, -1)) for linear in projections
    )
    key_bias, u = hidden_states.new_zeros(per_pair), layer.content_bias
    v: torch.Tensor | float = 0.0
    if layer.key_pairs is not None:
        key_bias, v = layer.key_pairs.compute_plainly(pair_features), layer.pair_bias
        key_bias = torch.einsum("bijd,hed->bijhe", key_bias, layer.key_pair_weight)
        key_bias = key_bias + layer.key_pair_constant
    # CODEPATH: "reference" is the authors' published weights, "paper" everything else.
    if layer.config.attention_form == "paper":
        scores = torch.einsum("bihe,bjhe->bhij", q + u, k)
        scores = scores + torch.einsum("bihe,bijhe->bhij", q + v, key_bias)
        scores = (scores + torch.einsum("bjhe,bjihe->bhij", k, key_bias)) / root
    else:
        scores = torch.einsum("bihe,bjhe->bhij", q, k) / root
        scores = scores + torch.einsum("bihe,bijhe->bhij", (q + k) / root + v, key_bias)
        scores = scores + torch.einsum("he,bihe->bhi", u, k).unsqueeze(-1)
    probs = scores.masked_fill(padding, -torch.inf).softmax(-1)
    value_bias = hidden_states.new_zeros(per_pair)
    if layer.value_pairs is not None:
        value_bias = layer.value_pairs.compute_plainly(pair_features)
        value_bias = torch.einsum("bijd,hed->bijhe", value_bias, layer.value_pair_weight)
        value_bias = value_bias + layer.value_pair_constant
    values = values.unsqueeze(1) + value_bias
    context = torch.einsum("bhij,bijhe->bihe", layer.attention_dropout(probs), values)
    return layer.o_proj(context.flatten(2)), probs


# The fast form


def eager_attention_forward(
    module: "RMatSelfAttention",
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    pair_scores: list[torch.Tensor],
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the heads read off the values of the nodes, and the probabilities.

    The function of transformers' attention interface. One of your own that is registered with
    `AttentionInterface.register` and chosen by `attn_implementation` has to add `pair_scores` to
    its scores as well, and to return the probabilities.

    Args:
        module: The layer that calls.
        query, key, value: `(batch_size, num_heads, num_nodes, head_size)`.
        attention_mask: 0, or the lowest number where a key is padding,
            `(batch_size, 1, 1, num_nodes)`.
        pair_scores: Biases of the scores, what a pair tells query and key, each
            `(batch_size, num_heads, num_nodes, num_nodes)`. This function empties the list.
        scaling: Factor of `query . key`.
        kwargs: `dropout`, the rate for functions that have no module for it.

    Returns:
        `(batch_size, num_nodes, num_heads, head_size)` and, after dropout,
        `(batch_size, num_heads, num_nodes, num_nodes)`.
    """
    # The term `sum_j p_ij z_ij` of the values needs the probabilities of every pair, which SDPA and
    # flash attention never have as a whole and do not return. It is no bias of the scores, and as
    # values of one query each, `v_j + b_ij` would be `num_heads * d` numbers a pair. So the class
    # adds it outside, from what is returned here, and no fused function of transformers will do.
    query, key, value = (states.transpose(0, 1) for states in (query, key, value))
    # the lowest number takes up every score; masking a sum would cost a gradient of its own
    mask = attention_mask.squeeze(1).expand(len(query), -1, -1, -1).flatten(0, 1)
    key = key.flatten(0, 1).transpose(1, 2)
    scores = torch.baddbmm(mask, query.flatten(0, 1), key, alpha=scaling)
    scores = scores.view(*query.shape[:-1], -1)
    # large: their memory goes to the probabilities
    while pair_scores:
        scores = scores.add_(pair_scores.pop(0).transpose(0, 1))
    probs = module.attention_dropout(nn.functional.softmax(scores, dim=-1).transpose(0, 1))
    output = torch.matmul(probs.transpose(0, 1), value)
    return output.permute(1, 2, 0, 3), probs


class RMatRadialProjection(nn.Linear):
    """Linear layer of the radial basis that adds to a tensor instead of making one of its own."""

    def forward(  # type: ignore[override]  # one argument more
        self, radial_basis: torch.Tensor, hidden: torch.Tensor | None
    ) -> torch.Tensor:
        # CODEPATH: `pair_relations` of the distance alone.
        if hidden is None:
            return super().forward(radial_basis)
        return hidden.addmm_(radial_basis, self.weight.t())


class RMatPairEmbedding(nn.Module):
    """First layer of a pair network: from everything known about a pair to `z`, as wide as a head.

    What reads integer codes runs once per code, not per pair.
    """

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        head_size = config.hidden_size // config.num_attention_heads
        num_codes, num_radial = config.num_code_features, config.relation_sizes["distance"]
        self.code_proj = nn.Linear(num_codes, head_size) if num_codes else None
        self.radial_proj = None
        if num_radial:
            self.radial_proj = RMatRadialProjection(num_radial, head_size, bias=not num_codes)
        self.act_fn = build_activation(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @property
    def projections(self) -> list[nn.Linear]:
        """The parts of the layer: of the codes, with the bias if it is there, and of the basis."""
        return [it for it in (self.code_proj, self.radial_proj) if it is not None]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights; those of the codes may be stored as integers."""
        return self.projections[-1].weight.dtype

    def compute_plainly(self, pair_features: torch.Tensor) -> torch.Tensor:
        """Return `z` of every pair from all its features side by side."""
        weight = torch.cat([it.weight for it in self.projections], dim=1)
        hidden = nn.functional.linear(pair_features, weight, self.projections[0].bias)
        return self.dropout(self.act_fn(hidden))

    def forward(
        self, *, pair_codes: torch.Tensor, radial_basis: torch.Tensor, code_features: torch.Tensor
    ) -> torch.Tensor:
        """Return `z` of every pair, `(batch_size, num_nodes, num_nodes, head_size)`."""
        dtype, hidden = self.dtype, None
        if self.code_proj is not None:
            code_table = self.code_proj(code_features.to(dtype))
            # the backward pass of `index_select` is several times faster than that of an embedding
            hidden = code_table.index_select(0, pair_codes.flatten())
        # flat until the end: autograd copies what is changed in place through a view
        if self.radial_proj is not None:
            hidden = self.radial_proj(radial_basis.flatten(0, 2).to(dtype), hidden)
        return self.dropout(self.act_fn(hidden)).view(*pair_codes.shape, -1)


class RMatSelfAttention(nn.Module):
    """Relative self-attention in the fast form.

    States of the heads are `(num_heads, batch_size, num_nodes, head_size)` inside: products by
    head, by molecule and by node all read this layout without a copy.
    """

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        # CODEPATH: `pair_terms` that leave one out are models of the publication's design space.
        self.key_pairs = RMatPairEmbedding(config) if "keys" in config.pair_terms else None
        # CODEPATH: as above.
        self.value_pairs = RMatPairEmbedding(config) if "values" in config.pair_terms else None
        # `W` and `c` of every head, for keys and for values
        per_head = (self.num_heads, self.head_size)
        if self.key_pairs is not None:
            self.key_pair_weight = nn.Parameter(torch.zeros(*per_head, self.head_size))
            self.key_pair_constant = nn.Parameter(torch.zeros(per_head))
        if self.value_pairs is not None:
            self.value_pair_weight = nn.Parameter(torch.zeros(*per_head, self.head_size))
            self.value_pair_constant = nn.Parameter(torch.zeros(per_head))
        # `u` and `v`
        self.content_bias = nn.Parameter(torch.zeros(per_head))
        if self.key_pairs is not None:
            self.pair_bias = nn.Parameter(torch.zeros(per_head))
        self.attention_dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def compute_pair_scores(self, states: torch.Tensor, key_pairs: torch.Tensor) -> torch.Tensor:
        """Return `(W^T s_i) . z_ij / sqrt(d)` for every state `s_i` of a node and head.

        `(num_states, num_heads, batch_size, num_nodes, head_size)` and the pairs' `z^K` become
        `(batch_size, num_nodes, num_states * num_heads, num_nodes)`.
        """
        weight = self.key_pair_weight.to(states.dtype) / math.sqrt(self.head_size)
        states = torch.matmul(states.flatten(2, 3), weight).view(states.shape)
        states = states.permute(2, 3, 0, 1, 4).flatten(2, 3)
        return torch.matmul(states, key_pairs.transpose(2, 3))

    def split_scores(
        self, query: torch.Tensor, key: torch.Tensor, key_pairs: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Return query and key whose product, scaled, is a score but for the pairs' part; and that.

        States are as inside, the pairs' part is `(batch_size, num_heads, num_nodes, num_nodes)`.
        """
        # CODEPATH: `pair_terms` without keys; in the "reference" form nothing is left of `u`.
        if key_pairs is None:
            is_paper = self.config.attention_form == "paper"
            return query + self.content_bias[:, None, None] if is_paper else query, key, []
        scale, pair_bias = 1.0 / math.sqrt(self.head_size), self.pair_bias[:, None, None]
        # CODEPATH: "reference" is the authors' published weights, "paper" everything else.
        if self.config.attention_form == "paper":
            states = torch.stack((query + pair_bias, key))
            query, key = states.unbind()
            # the query is `q + v` here, and `v` does not meet the keys
            content_bias = self.content_bias + self.key_pair_constant - self.pair_bias
            query = query + content_bias[:, None, None].to(query.dtype)
        else:
            query, key = query.contiguous(), key.contiguous()
            states = (query + key).add_(pair_bias / scale).unsqueeze(0)
        of_queries, *of_keys = self.compute_pair_scores(states, key_pairs).split(
            self.num_heads, dim=2
        )
        # a pair of node and key is one of key and node where the key asks
        biases = [of_queries.transpose(1, 2), *(of_key.permute(0, 2, 3, 1) for of_key in of_keys)]
        return query, key, biases

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        padding: torch.Tensor,
        **pairs: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what all heads make of every node, side by side, and the probabilities."""
        key_pairs = None if self.key_pairs is None else self.key_pairs(**pairs)
        query, key, pair_scores = self.split_scores(query, key, key_pairs)
        if self.value_pairs is not None:
            value = (value + self.value_pair_constant[:, None, None]).contiguous()
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        query, key, value = (states.transpose(0, 1) for states in (query, key, value))
        output, attention_probs = attention_interface(
            self,
            query,
            key,
            value,
            padding.to(query.dtype) * torch.finfo(query.dtype).min,
            pair_scores=pair_scores,
            scaling=1.0 / math.sqrt(self.head_size),
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
        )
        if attention_probs is None:
            raise ValueError(
                f"The attention {self.config._attn_implementation!r} returns no probabilities, "
                'which the values of pairs need. Use attn_implementation="eager".'
            )
        # CODEPATH: `pair_terms` without values.
        if self.value_pairs is None:
            return output.flatten(2), attention_probs
        mixed = torch.matmul(attention_probs.transpose(1, 2), self.value_pairs(**pairs))
        context = torch.einsum("bnhd,hed->hbne", mixed, self.value_pair_weight.to(mixed.dtype))
        context = context.add_(output.permute(2, 0, 1, 3))
        return context.permute(1, 2, 0, 3).flatten(2), attention_probs

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        padding: torch.Tensor,
        pair_codes: torch.Tensor,
        radial_basis: torch.Tensor,
        code_features: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return new hidden states and the attention probabilities.

        Args:
            hidden_states: Normed states of the nodes, `(batch_size, num_nodes, hidden_size)`.
            padding: True where a node is padding, `(batch_size, 1, 1, num_nodes)`.
            pair_codes, radial_basis: As from [`RMatPairFeatures`].
            code_features: What each code stands for, `(num_codes, num_code_features)`.
        """
        pairs = self.key_pairs or self.value_pairs
        dtype = hidden_states.dtype if pairs is None else pairs.dtype
        per_head = (self.num_heads, self.head_size)
        heads = [
            linear(hidden_states).to(dtype).unflatten(-1, per_head).permute(2, 0, 1, 3)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        ]
        attend = partial(
            self.attend,
            padding=padding,
            pair_codes=pair_codes,
            radial_basis=radial_basis,
            code_features=code_features,
        )
        # half precision in what follows is slower on processors, and would make most of the error
        with torch.autocast(hidden_states.device.type, enabled=False):
            # CODEPATH: training of a model that was asked to save memory.
            if self.config.recompute_pairs and torch.is_grad_enabled():
                context, attention_probs = checkpoint(attend, *heads, use_reentrant=False)
            else:
                context, attention_probs = attend(*heads)
        return self.o_proj(context.to(hidden_states.dtype)), attention_probs


__all__ = ["RMatPairFeatures", "RMatSelfAttention", "compute_plain_attention"]
