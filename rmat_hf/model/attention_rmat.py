"""Relative self-attention over bonds, neighborhoods and 3D distances.

Source: Maziarka et al., Relative Molecule Self-Attention Transformer, arXiv 2110.05841 and
J. Cheminf. 16:3 (2024), section 3.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN

from .centered_linear_rmat import compute_atom_mean, is_rounded, project_exactly
from .configuration_rmat import RMatConfig


def build_activation(config: RMatConfig) -> nn.Module:
    """Return the activation that `hidden_act` names."""
    # CODEPATH: leaky_relu with slope 0.1 is the authors' checkpoints'; ACT2FN knows only 0.01.
    if config.hidden_act == "leaky_relu":
        return nn.LeakyReLU(config.leaky_relu_slope, inplace=True)
    return ACT2FN[config.hidden_act]


class RMatRadialProjection(nn.Linear):
    """Linear layer of the radial basis that adds to a tensor instead of making one of its own."""

    def forward(  # type: ignore[override]  # one argument more
        self, radial_basis: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        return hidden.addmm_(radial_basis, self.weight.t())


class RMatPairEmbedding(nn.Module):
    """First layer of a pair network: from everything known about a pair to `z`, as wide as a head.

    The part that reads integer codes runs once per code, not per pair.
    """

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        head_size = config.hidden_size // config.num_attention_heads
        self.code_proj = nn.Linear(config.num_code_features, head_size)
        self.radial_proj = RMatRadialProjection(config.num_radial_basis, head_size, bias=False)
        self.act_fn = build_activation(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, pair_codes: torch.Tensor, radial_basis: torch.Tensor, code_features: torch.Tensor
    ) -> torch.Tensor:
        """Return `z` of every pair, `(batch_size, num_nodes, num_nodes, head_size)`."""
        dtype = self.radial_proj.weight.dtype
        code_table = self.code_proj(code_features.to(dtype))
        # the backward pass of `index_select` is several times faster than that of an embedding
        hidden = code_table.index_select(0, pair_codes.flatten())
        # flat until the end: autograd copies what is changed in place through a view
        hidden = self.radial_proj(radial_basis.flatten(0, 2).to(dtype), hidden)
        return self.dropout(self.act_fn(hidden)).view(*pair_codes.shape, -1)


class RMatSelfAttention(nn.Module):
    """Relative self-attention with pair biases on keys and values (section 3 of the paper).

    The pair networks give a bias `b_ij = W z_ij + c` to every head; all heads share `z_ij`. So
    `q . b_ij = (W^T q) . z_ij + q . c`, and `sum_j a_ij b_ij = W (sum_j a_ij z_ij) + c sum_j a_ij`:
    no tensor larger than `(batch_size, num_nodes, num_nodes, head_size)` is ever needed. Terms
    that are constant along a row of the softmax cancel and are left out. `c` of the values is
    added to them before they are summed.

    Pairs have no direction, `z_ij = z_ji`: the key of column j meets the pair (j, i), so that one
    product with the pairs of a node serves its query and its key.

    Inside, states of the heads are `(num_heads, batch_size, num_nodes, head_size)`: products by
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
        self.key_pairs = RMatPairEmbedding(config)
        self.value_pairs = RMatPairEmbedding(config)
        # `W` and `c` of every head
        per_head = (self.num_heads, self.head_size)
        self.key_pair_weight = nn.Parameter(torch.zeros(*per_head, self.head_size))
        self.key_pair_constant = nn.Parameter(torch.zeros(per_head))
        self.value_pair_weight = nn.Parameter(torch.zeros(*per_head, self.head_size))
        self.value_pair_constant = nn.Parameter(torch.zeros(per_head))
        self.content_bias = nn.Parameter(torch.zeros(per_head))
        self.pair_bias = nn.Parameter(torch.zeros(per_head))
        self.attention_dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def run_pairwise(
        self, function: Callable[..., torch.Tensor], *inputs: torch.Tensor | None
    ) -> torch.Tensor:
        """Run a function of the pairs; with `recompute_pairs` its gradient computes them again."""
        # CODEPATH: training of a model that was asked to save memory.
        if self.config.recompute_pairs and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def compute_pair_scores(
        self, pair_query: torch.Tensor, pair_key: torch.Tensor | None, *pairs: torch.Tensor
    ) -> torch.Tensor:
        """Return what pairs add to the scores, `(num_heads, batch_size, num_nodes, num_nodes)`."""
        hidden = self.key_pairs(*pairs)
        weight = self.key_pair_weight.to(hidden.dtype) / math.sqrt(self.head_size)
        states = pair_query
        # CODEPATH: "paper" only, where the key of column j meets a pair too.
        if pair_key is not None:
            states, weight = torch.cat((pair_query, pair_key)), torch.cat((weight, weight))
        states = torch.einsum("hbne,hed->bnhd", states, weight)
        scores = torch.matmul(states, hidden.transpose(2, 3)).permute(2, 0, 1, 3)
        query_scores = scores[: self.num_heads].contiguous()
        if pair_key is None:
            return query_scores
        return query_scores.add_(scores[self.num_heads :].transpose(2, 3))

    def compute_scores(
        self, query: torch.Tensor, key: torch.Tensor, padding: torch.Tensor, *pairs: torch.Tensor
    ) -> torch.Tensor:
        """Return the attention scores, `(num_heads, batch_size, num_nodes, num_nodes)`."""
        scale = 1.0 / math.sqrt(self.head_size)
        # CODEPATH: "reference" is the authors' published weights, "paper" everything else.
        if self.config.attention_form == "reference":
            content_query, pair_key = query, None
            pair_query = (query + key).add_(self.pair_bias[:, None, None] / scale)
        else:
            # `pair_bias` is in the query, and is not meant for this product
            content_bias = self.content_bias.to(query.dtype) + self.key_pair_constant
            content_bias = content_bias - self.pair_bias
            content_query = query + content_bias[:, None, None]
            pair_query, pair_key = query, key
        scores = self.run_pairwise(self.compute_pair_scores, pair_query, pair_key, *pairs)
        scores = scores.add_(torch.matmul(content_query, key.transpose(2, 3)), alpha=scale)
        # a sum has no gradient to mask; the lowest number takes up every score
        mask = padding.to(scores.dtype) * torch.finfo(scores.dtype).min
        return scores.add_(mask.transpose(0, 1))

    def compute_pair_context(self, probs: torch.Tensor, *pairs: torch.Tensor) -> torch.Tensor:
        """Return what pairs add to the values of every head and node."""
        hidden = self.value_pairs(*pairs)
        context = torch.matmul(probs.permute(1, 2, 0, 3), hidden)
        weight = self.value_pair_weight.to(hidden.dtype)
        return torch.einsum("bnhd,hed->hbne", context, weight)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        padding: torch.Tensor,
        *pairs: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the context of every head and node, and the attention probabilities."""
        scores = self.compute_scores(query, key, padding, *pairs)
        attention_probs = nn.functional.softmax(scores, dim=-1).transpose(0, 1)
        dropped_probs = self.attention_dropout(attention_probs).transpose(0, 1)
        context = torch.matmul(dropped_probs, value)
        pair_context = self.run_pairwise(self.compute_pair_context, dropped_probs, *pairs)
        return context.add_(pair_context), attention_probs

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """Return `(num_heads, batch_size, num_nodes, head_size)`, in the type of the pairs."""
        states = states.view(*states.shape[:-1], self.num_heads, self.head_size).permute(2, 0, 1, 3)
        dtype = self.key_pairs.radial_proj.weight.dtype
        # `to` alone keeps the layout where the type is already the one of the pairs
        return states.to(dtype, memory_format=torch.contiguous_format).contiguous()

    def project(
        self, hidden_states: torch.Tensor, atom_weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, key and value, each `(num_heads, batch_size, num_nodes, head_size)`.

        The value has `value_pair_constant` in it, in the "paper" form the query `pair_bias`.
        """
        value = self.split_heads(self.v_proj(hidden_states))
        value = value.add_(self.value_pair_constant[:, None, None])
        rest, mean = hidden_states, None
        # CODEPATH: autocast rounds how the nodes differ, and not what the atoms have in common.
        if is_rounded(hidden_states, self.q_proj):
            hidden_states = hidden_states.to(atom_weights.dtype)
            mean = compute_atom_mean(hidden_states, atom_weights)
            rest = hidden_states - mean
            rest = rest.to(torch.get_autocast_dtype(rest.device.type))
        query, key = self.split_heads(self.q_proj(rest)), self.split_heads(self.k_proj(rest))
        if mean is not None:
            query = query.add_(self.split_heads(project_exactly(self.q_proj, mean)))
            key = key.add_(self.split_heads(project_exactly(self.k_proj, mean)))
        # CODEPATH: "paper" only; "reference" adds this bias to the sum of query and key.
        if self.config.attention_form == "paper":
            query = query.add_(self.pair_bias[:, None, None])
        return query, key, value

    def merge_heads(
        self, context: torch.Tensor, atom_weights: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return the output of the layer from the context of every head and node."""
        context = context.permute(1, 2, 0, 3).flatten(2)
        # CODEPATH: without autocast nothing is rounded here.
        if not is_rounded(context, self.o_proj):
            return self.o_proj(context.to(dtype))
        device_type = context.device.type
        mean = compute_atom_mean(context, atom_weights)
        # the dummy node has little in common with the atoms
        atoms = atom_weights.sign().transpose(1, 2).to(context.dtype)
        with torch.autocast(device_type, enabled=False):
            rest = context.baddbmm_(atoms, mean, alpha=-1)
        output = self.o_proj(rest.to(torch.get_autocast_dtype(device_type))).to(context.dtype)
        with torch.autocast(device_type, enabled=False):
            mean_output = project_exactly(self.o_proj, mean).to(context.dtype)
            return output.baddbmm_(atoms, mean_output).to(dtype)

    def forward(
        self,
        hidden_states: torch.Tensor,
        padding: torch.Tensor,
        atom_weights: torch.Tensor,
        pair_codes: torch.Tensor,
        radial_basis: torch.Tensor,
        code_features: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return new hidden states and the attention probabilities.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, num_nodes, hidden_size)`):
                Normed states of the nodes.
            padding (`torch.Tensor` of shape `(batch_size, 1, 1, num_nodes)`):
                True where a node is padding.
            atom_weights (`torch.Tensor` of shape `(batch_size, 1, num_nodes)`):
                Weights of the mean over the atoms, a mean that autocast does not round.
            pair_codes (`torch.Tensor` of shape `(batch_size, num_nodes, num_nodes)`):
                Integer code of bond and neighborhood order.
            radial_basis (`torch.Tensor`):
                Of shape `(batch_size, num_nodes, num_nodes, num_radial_basis)`.
            code_features (`torch.Tensor` of shape `(num_codes, num_code_features)`):
                What each code stands for.
        """
        query, key, value = self.project(hidden_states, atom_weights)
        # Half precision in what follows would make most of the error of a whole model in it.
        with torch.autocast(hidden_states.device.type, enabled=False):
            context, attention_probs = self.attend(
                query, key, value, padding, pair_codes, radial_basis, code_features
            )
        output = self.merge_heads(context, atom_weights, hidden_states.dtype)
        return output, attention_probs


__all__ = ["RMatPairEmbedding", "RMatSelfAttention", "build_activation"]
