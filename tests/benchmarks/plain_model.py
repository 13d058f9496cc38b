"""R-MAT as its equations read, unfactored and dense in float32: what the speed is measured against.

The same function as `RMatForSequenceClassification`, whose weights it takes over. The inputs are
one-hot and dense, every pair bias is a tensor of `(batch_size, num_nodes, num_nodes, hidden_size)`,
every term of the score is computed for itself, batches are padded as they come.
"""

import math

import torch
from torch import nn

from rmat_hf.model.attention_rmat import build_activation
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import (
    RMatFeedForward,
    RMatForSequenceClassification,
    RMatPredictionHead,
    build_pooler,
)
from rmat_hf.model.pair_features_rmat import compute_radial_basis


def build_dense_inputs(
    model: RMatForSequenceClassification, batch: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return a batch as one-hot and dense float32 tensors."""
    pair_codes, _ = model.rmat.pair_features(
        batch["bond_types"], batch["topological_distances"], batch["interatomic_distances"]
    )
    code_features = model.rmat.pair_features.code_features.float()
    return {
        "node_features": batch["node_features"].float(),
        "code_features": code_features[pair_codes.long()],
        "interatomic_distances": batch["interatomic_distances"],
        "attention_mask": batch["attention_mask"],
    }


def rename_pair_network(weights: dict[str, torch.Tensor], *, layer: str, side: str) -> None:
    """Write the weights of a pair network as those of its two linear layers."""
    old, new = f"{layer}.{side}_pairs", f"{layer}.{side}_pair"
    first = [weights.pop(f"{old}.{part}_proj.weight") for part in ("code", "radial")]
    weights[f"{new}_proj.weight"] = torch.cat(first, dim=1)
    weights[f"{new}_proj.bias"] = weights.pop(f"{old}.code_proj.bias")
    weights[f"{new}_out_proj.weight"] = weights.pop(f"{new}_weight").flatten(0, 1)
    weights[f"{new}_out_proj.bias"] = weights.pop(f"{new}_constant").flatten()


class PlainSelfAttention(nn.Module):
    """Relative self-attention with the pair biases of keys and values written out."""

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_pair_proj = nn.Linear(config.num_pair_features, self.head_size)
        self.key_pair_out_proj = nn.Linear(self.head_size, config.hidden_size)
        self.value_pair_proj = nn.Linear(config.num_pair_features, self.head_size)
        self.value_pair_out_proj = nn.Linear(self.head_size, config.hidden_size)
        self.content_bias = nn.Parameter(torch.zeros(self.num_heads, self.head_size))
        self.pair_bias = nn.Parameter(torch.zeros(self.num_heads, self.head_size))
        self.act_fn = build_activation(config)
        self.pair_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.attention_dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, padding: torch.Tensor, pair_features: torch.Tensor
    ) -> torch.Tensor:
        batch_size, num_nodes, _ = hidden_states.shape
        per_head = (batch_size, num_nodes, self.num_heads, self.head_size)
        per_pair = (batch_size, num_nodes, num_nodes, self.num_heads, self.head_size)
        # heads before nodes
        query = self.q_proj(hidden_states).view(per_head).transpose(1, 2)
        key = self.k_proj(hidden_states).view(per_head).transpose(1, 2)
        value = self.v_proj(hidden_states).view(per_head).transpose(1, 2)
        # heads before pairs
        key_hidden = self.pair_dropout(self.act_fn(self.key_pair_proj(pair_features)))
        key_bias = self.key_pair_out_proj(key_hidden).view(per_pair).permute(0, 3, 1, 2, 4)
        value_hidden = self.pair_dropout(self.act_fn(self.value_pair_proj(pair_features)))
        value_bias = self.value_pair_out_proj(value_hidden).view(per_pair).permute(0, 3, 1, 2, 4)

        u, v = self.content_bias.unsqueeze(1), self.pair_bias[:, None, None]
        content = torch.matmul(query, key.transpose(-1, -2))
        query_pair = torch.matmul(query.unsqueeze(3), key_bias.transpose(-1, -2)).squeeze(3)
        v_pair = torch.matmul(v, key_bias.transpose(-1, -2)).squeeze(3)
        if self.config.attention_form == "paper":
            key_pair = torch.einsum("bhjd,bhijd->bhij", key, key_bias)
            u_key = torch.matmul(u, key.transpose(-1, -2))
            scores = (content + query_pair + key_pair + u_key + v_pair) / math.sqrt(self.head_size)
        else:
            key_pair = torch.matmul(key.unsqueeze(3), key_bias.transpose(-1, -2)).squeeze(3)
            u_key = torch.matmul(key, u.transpose(-1, -2))
            scores = (content + query_pair + key_pair) / math.sqrt(self.head_size) + u_key + v_pair
        probs = self.attention_dropout(scores.masked_fill(padding, -torch.inf).softmax(-1))
        context = torch.matmul(probs, value)
        context = context + torch.matmul(probs.unsqueeze(3), value_bias).squeeze(3)
        return self.o_proj(context.transpose(1, 2).reshape(batch_size, num_nodes, -1))


class PlainLayer(nn.Module):
    """Pre-norm block."""

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attention = PlainSelfAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = RMatFeedForward(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, padding: torch.Tensor, pair_features: torch.Tensor
    ) -> torch.Tensor:
        attended = self.self_attention(self.attention_norm(hidden_states), padding, pair_features)
        hidden_states = hidden_states + self.dropout(attended)
        fed = self.feed_forward(self.feed_forward_norm(hidden_states))
        return hidden_states + self.dropout(fed)


class PlainEncoder(nn.Module):
    """Embedding, layers, final norm and pooling."""

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleDict(
            {"node_proj": nn.Linear(config.num_node_features, config.hidden_size)}
        )
        self.layers = nn.ModuleList([PlainLayer(config) for _ in range(config.num_hidden_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = build_pooler(config)

    def forward(
        self,
        node_features: torch.Tensor,
        code_features: torch.Tensor,
        interatomic_distances: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        radial_basis = compute_radial_basis(
            interatomic_distances,
            num_radial_basis=self.config.num_radial_basis,
            cutoff=self.config.distance_cutoff,
            exponent=self.config.radial_envelope_exponent,
        ).to(code_features.dtype)
        pair_features = torch.cat((code_features, radial_basis), dim=-1)
        padding = attention_mask[:, None, None, :] == 0
        hidden_states = self.embeddings["node_proj"](node_features)
        for layer in self.layers:
            hidden_states = layer(hidden_states, padding, pair_features)
        return self.pooler(self.final_norm(hidden_states), attention_mask)


class PlainPredictor(nn.Module):
    """The encoder with the prediction head; takes what `build_dense_inputs` returns."""

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        self.rmat = PlainEncoder(config)
        self.classifier = RMatPredictionHead(
            config, input_size=config.pooled_size, output_size=len(config.output_names)
        )

    @classmethod
    def from_model(cls, model: RMatForSequenceClassification) -> "PlainPredictor":
        """Return the plain model with a model's weights."""
        plain = cls(model.config)
        weights = model.state_dict()
        for idx in range(model.config.num_hidden_layers):
            for side in ("key", "value"):
                rename_pair_network(weights, layer=f"rmat.layers.{idx}.self_attention", side=side)
        plain.load_state_dict(weights)
        return plain.train(model.training)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.rmat(**inputs))
