"""R-MAT's attention written straight from the equations, unfactored: the oracle of the tests.

Every pair bias is materialized as a tensor `(batch, num_nodes, num_nodes, heads, head_size)`.
"""

import math

import torch

from rmat_hf.model.attention_rmat import RMatSelfAttention


def build_pair_features(
    pair_codes: torch.Tensor, radial_basis: torch.Tensor, code_features: torch.Tensor
) -> torch.Tensor:
    """Return `[bond | neighborhood | radial]` of every pair."""
    return torch.cat((code_features[pair_codes], radial_basis), dim=-1)


def compute_plain_attention(
    layer: RMatSelfAttention,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor,
    pair_features: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output and attention probabilities of a layer's weights, pair by pair.

    paper:     [q_i.k_j + q_i.b_ij + k_j.b_ji + u.k_j + v.b_ij] / sqrt(d)
    reference: [q_i.k_j + (q_i + k_i).b_ij] / sqrt(d) + u.k_i + v.b_ij
    output:    sum_j dropout(softmax_j(score_ij)) (value_j + bV_ij)

    Pairs have no direction: b_ji is b_ij. Only a dropout or a gradient tells them apart.
    """
    batch_size, num_nodes, _ = hidden_states.shape
    heads, size = layer.num_heads, layer.head_size
    per_head = (batch_size, num_nodes, heads, size)
    query = layer.q_proj(hidden_states).view(per_head)
    key = layer.k_proj(hidden_states).view(per_head)
    value = layer.v_proj(hidden_states).view(per_head)

    def run_pair_network(side: str) -> torch.Tensor:
        embedding = getattr(layer, f"{side}_pairs")
        weight = torch.cat((embedding.code_proj.weight, embedding.radial_proj.weight), dim=1)
        hidden = embedding.act_fn(pair_features @ weight.T + embedding.code_proj.bias)
        biases = embedding.dropout(hidden) @ getattr(layer, f"{side}_pair_weight").flatten(0, 1).T
        biases = biases + getattr(layer, f"{side}_pair_constant").flatten()
        return biases.view(batch_size, num_nodes, num_nodes, heads, size)

    key_bias, value_bias = run_pair_network("key"), run_pair_network("value")
    u, v = layer.content_bias, layer.pair_bias
    content = torch.einsum("bihd,bjhd->bhij", query, key)
    query_pair = torch.einsum("bihd,bijhd->bhij", query, key_bias)
    v_pair = torch.einsum("hd,bijhd->bhij", v, key_bias)
    if layer.config.attention_form == "paper":
        key_pair = torch.einsum("bjhd,bjihd->bhij", key, key_bias)
        u_key = torch.einsum("hd,bjhd->bhj", u, key).unsqueeze(2)
        scores = (content + query_pair + key_pair + u_key + v_pair) / math.sqrt(size)
    else:
        key_pair = torch.einsum("bihd,bijhd->bhij", key, key_bias)
        u_key = torch.einsum("hd,bihd->bhi", u, key).unsqueeze(3)
        scores = (content + query_pair + key_pair) / math.sqrt(size) + u_key + v_pair
    scores = scores.masked_fill(attention_mask[:, None, None, :] == 0, -torch.inf)
    probs = scores.softmax(-1)
    dropped = layer.attention_dropout(probs)
    values = value.unsqueeze(1) + value_bias
    context = torch.einsum("bhij,bijhd->bihd", dropped, values)
    return layer.o_proj(context.reshape(batch_size, num_nodes, -1)), probs
