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

from .configuration_rmat import RMatConfig


def build_activation(config: RMatConfig) -> nn.Module:
    """Return the activation that `hidden_act` names."""
    # CODEPATH: leaky_relu with slope 0.1 is the authors' checkpoints'; ACT2FN knows only 0.01.
    if config.hidden_act == "leaky_relu":
        return nn.LeakyReLU(config.leaky_relu_slope, inplace=True)
    return ACT2FN[config.hidden_act]


class RMatPairEmbedding(nn.Module):
    """First layer of a pair network: from everything known about a pair to `z`, as wide as a head.

    The part that reads integer codes runs once per code, not per pair.
    """

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        head_size = config.hidden_size // config.num_attention_heads
        self.code_proj = nn.Linear(config.num_code_features, head_size)
        self.radial_proj = nn.Linear(config.num_radial_basis, head_size, bias=False)
        self.act_fn = build_activation(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, pair_codes: torch.Tensor, radial_basis: torch.Tensor, code_features: torch.Tensor
    ) -> torch.Tensor:
        """Return `z` of every pair, `(batch_size, num_nodes, num_nodes, head_size)`."""
        dtype = self.radial_proj.weight.dtype
        code_table = self.code_proj(code_features.to(dtype))
        hidden = self.radial_proj(radial_basis.to(dtype))
        # the backward pass of `index_select` is several times faster than that of an embedding
        hidden += code_table.index_select(0, pair_codes.flatten()).view_as(hidden)
        return self.dropout(self.act_fn(hidden))


class RMatSelfAttention(nn.Module):
    """Relative self-attention with pair biases on keys and values (section 3 of the paper).

    The pair networks give a bias `b_ij = W z_ij + c` to every head; all heads share `z_ij`. So
    `q . b_ij = (W^T q) . z_ij + q . c`, and `sum_j a_ij b_ij = W (sum_j a_ij z_ij) + c sum_j a_ij`:
    no tensor larger than `(batch_size, num_nodes, num_nodes, head_size)` is ever needed. Terms
    that are constant along a row of the softmax cancel and are left out.
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
        """Return what pairs add to the scores, `(batch_size, num_nodes, num_heads, num_nodes)`."""
        hidden = self.key_pairs(*pairs)
        weight = self.key_pair_weight.to(hidden.dtype)
        pair_query = torch.einsum("bihe,hed->bihd", pair_query, weight)
        scores = torch.matmul(pair_query, hidden.transpose(-1, -2))
        # CODEPATH: "paper" only, where the key of column j meets the pair (i, j) too.
        if pair_key is not None:
            # row j, head, column i
            pair_key = torch.einsum("bjhe,hed->bjhd", pair_key, weight)
            key_scores = torch.matmul(pair_key, hidden.permute(0, 2, 3, 1))
            scores = scores + key_scores.transpose(1, 3)
        return scores

    def compute_scores(
        self, query: torch.Tensor, key: torch.Tensor, *pairs: torch.Tensor
    ) -> torch.Tensor:
        """Return the attention scores, `(batch_size, num_heads, num_nodes, num_nodes)`."""
        scale = 1.0 / math.sqrt(self.head_size)
        # CODEPATH: "reference" is the authors' published weights, "paper" everything else.
        if self.config.attention_form == "reference":
            content_query, pair_key = query * scale, None
            pair_query = (query + key) * scale + self.pair_bias
        else:
            content_query = (query + self.content_bias + self.key_pair_constant) * scale
            pair_query, pair_key = (query + self.pair_bias) * scale, key * scale
        content_scores = torch.matmul(content_query.transpose(1, 2), key.permute(0, 2, 3, 1))
        pair_scores = self.run_pairwise(self.compute_pair_scores, pair_query, pair_key, *pairs)
        return content_scores + pair_scores.transpose(1, 2)

    def compute_pair_context(self, probs: torch.Tensor, *pairs: torch.Tensor) -> torch.Tensor:
        """Return what pairs add to the values of every node and head."""
        hidden = self.value_pairs(*pairs)
        context = torch.matmul(probs.transpose(1, 2), hidden)
        weight = self.value_pair_weight.to(hidden.dtype)
        return torch.einsum("bihd,hed->bihe", context, weight)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        padding: torch.Tensor,
        *pairs: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the context of every node and head, and the attention probabilities."""
        scores = self.compute_scores(query, key, *pairs)
        scores = scores.masked_fill(padding, torch.finfo(scores.dtype).min)
        attention_probs = nn.functional.softmax(scores, dim=-1)
        dropped_probs = self.attention_dropout(attention_probs)
        context = torch.matmul(dropped_probs, value.transpose(1, 2)).transpose(1, 2)
        context = context + self.run_pairwise(self.compute_pair_context, dropped_probs, *pairs)
        sums = dropped_probs.sum(-1).transpose(1, 2).unsqueeze(-1)
        return context + sums * self.value_pair_constant, attention_probs

    def forward(
        self,
        hidden_states: torch.Tensor,
        padding: torch.Tensor,
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
            pair_codes (`torch.Tensor` of shape `(batch_size, num_nodes, num_nodes)`):
                Integer code of bond and neighborhood order.
            radial_basis (`torch.Tensor`):
                Of shape `(batch_size, num_nodes, num_nodes, num_radial_basis)`.
            code_features (`torch.Tensor` of shape `(num_codes, num_code_features)`):
                What each code stands for.
        """
        head_shape = (*hidden_states.shape[:-1], self.num_heads, self.head_size)
        query = self.q_proj(hidden_states).view(head_shape)
        key = self.k_proj(hidden_states).view(head_shape)
        value = self.v_proj(hidden_states).view(head_shape)
        # Half precision in what follows would make most of the error of a whole model in it.
        with torch.autocast(hidden_states.device.type, enabled=False):
            dtype = self.key_pairs.radial_proj.weight.dtype
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
            context, attention_probs = self.attend(
                query, key, value, padding, pair_codes, radial_basis, code_features
            )
        context = context.flatten(2).to(hidden_states.dtype)
        return self.o_proj(context), attention_probs


__all__ = ["RMatPairEmbedding", "RMatSelfAttention", "build_activation"]
