"""R-MAT as its equations read, unfactored and dense in float32: what the speed is measured against.

The same function as `RMatForSequenceClassification`, whose weights it takes over. The inputs are
one-hot and dense, the attention is `compute_plain_attention`, with every pair bias as a tensor of
`(batch_size, num_nodes, num_nodes, hidden_size)`, and batches are padded as they come.
"""

import torch

from rmat_hf.model.attention_rmat import compute_plain_attention, compute_radial_basis
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification, RMatLayer


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


def run_plain_layer(
    layer: RMatLayer, states: torch.Tensor, padding: torch.Tensor, pair_features: torch.Tensor
) -> torch.Tensor:
    """Return what a layer makes of the states of the nodes."""
    attended, _ = compute_plain_attention(
        layer.self_attention,
        layer.attention_norm(states),
        padding=padding,
        pair_features=pair_features,
    )
    states = states + layer.dropout(attended)
    return states + layer.dropout(layer.feed_forward(layer.feed_forward_norm(states)))


class PlainPredictor(RMatForSequenceClassification):
    """The same weights; takes what `build_dense_inputs` returns and gives logits."""

    @classmethod
    def from_model(cls, model: RMatForSequenceClassification) -> "PlainPredictor":
        """Return the plain model with a copy of a model's weights."""
        plain = cls(model.config)
        plain.load_state_dict(model.state_dict())
        return plain.train(model.training)

    def forward(  # type: ignore[override]  # dense inputs
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
        states = self.rmat.embeddings(node_features)
        for layer in self.rmat.layers:
            states = run_plain_layer(layer, states, padding, pair_features)
        return self.classifier(self.rmat.pooler(self.rmat.final_norm(states), attention_mask))
