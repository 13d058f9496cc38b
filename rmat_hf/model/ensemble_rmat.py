"""What predicts with more than one network with a head."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_rmat import RMatConfig, RMatEnsembleConfig
from .losses_rmat import LOSSES, choose
from .modeling_rmat import RMatForSequenceClassification, RMatPreTrainedModel
from .trust_rmat import build_trust


@dataclass
class RMatEnsembleOutput(ModelOutput):
    """Output of [`RMatEnsembleForSequenceClassification`].

    Args:
        loss: Mean of the members' losses.
        logits: `(batch_size, num_labels)`. Regression: mean of the members' predictions, in the
            user's units. Classification: the logits of the mean of their probabilities.
        member_logits: `(batch_size, num_members, num_labels)`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    member_logits: torch.Tensor | None = None


class RMatEnsembleForSequenceClassification(RMatPreTrainedModel):
    """Predicts properties of a molecule with several [`RMatForSequenceClassification`].

    Args:
        config ([`RMatEnsembleConfig`]): That of a member, and their number.

    Raises:
        ValueError: The configuration names a loss or a pooling that nobody knows.

    Example:
    ```python
    >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    >>> config = RMatConfig(**sizes, num_labels=1, problem_type="regression")
    >>> members = [RMatForSequenceClassification(config) for _ in range(3)]
    >>> ensemble = RMatEnsembleForSequenceClassification.from_members(members)
    >>> batch = RMatProcessor(geometry="bounds")(["CCO", "c1ccccc1"], return_tensors="pt")
    >>> output = ensemble(**batch)
    >>> output.logits.shape, output.member_logits.shape
    (torch.Size([2, 1]), torch.Size([2, 3, 1]))

    ```
    """

    config: RMatEnsembleConfig
    # names no part: there is no encoder that all members share
    base_model_prefix = "rmat_ensemble"
    _auto_class = "AutoModelForSequenceClassification"
    saved_auto_map = {
        "AutoConfig": "configuration_rmat.RMatEnsembleConfig",
        "AutoModelForSequenceClassification": "ensemble_rmat.RMatEnsembleForSequenceClassification",
    }

    def __init__(self, config: RMatEnsembleConfig) -> None:
        super().__init__(config)
        self.num_labels = len(config.output_names)
        self.meaning = choose(LOSSES, config.problem_type or "regression")
        self.members = nn.ModuleList(
            [RMatForSequenceClassification(config) for _ in range(config.num_members)]
        )
        self.trust_head = build_trust(self, self.members[0].base_model)
        self.post_init()

    @classmethod
    def from_members(
        cls, members: list[RMatForSequenceClassification]
    ) -> "RMatEnsembleForSequenceClassification":
        """Build an ensemble of models, not copies, that have the same architecture and labels.

        It has no intervals and no domain: those of the members are of each alone, and stay there.

        Raises:
            ValueError: If there is none, or the configurations differ.
        """
        fields = [get_member_fields(member.config) for member in members]
        different = {name for other in fields for name in other if other[name] != fields[0][name]}
        if not members or different:
            raise ValueError(
                f"{len(members)} models that differ in {sorted(different)} make no ensemble. Give "
                "at least one, all of one architecture and with the same labels and scaling."
            )
        with torch.device("meta"):
            ensemble = cls(RMatEnsembleConfig(**fields[0], num_members=len(members)))
        ensemble.members = nn.ModuleList([_without_trust(member) for member in members])
        return ensemble.train(members[0].training)

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
        **kwargs: Any,
    ) -> RMatEnsembleOutput:
        """Predict the properties of a padded batch of molecules with every member.

        The arguments are those of [`RMatForSequenceClassification`]: a `Trainer` keeps the columns
        that a signature names.
        """
        inputs = (node_features, bond_types, topological_distances, interatomic_distances)
        options = (attention_mask, molecule_descriptors, labels)
        outputs = [member(*inputs, *options, return_dict=True, **kwargs) for member in self.members]
        member_logits = torch.stack([output.logits for output in outputs], dim=1)
        losses = [output.loss for output in outputs if output.loss is not None]
        loss = torch.stack(losses).mean() if losses else None
        return RMatEnsembleOutput(loss, self.meaning.average_logits(member_logits), member_logits)


def _without_trust(model: RMatForSequenceClassification) -> RMatForSequenceClassification:
    """Return a model, or one with its very weights if it has trust, which is no ensemble's."""
    # CODEPATH: models finetuned with `--trust fingerprints` or `--trust centers`.
    if model.config.trust is None:
        return model
    bare = copy.copy(model)
    bare._modules = {**model._modules, "trust_head": None}
    bare.config = copy.copy(model.config)
    bare.config.trust = None
    return bare


def get_member_fields(config: RMatConfig) -> dict[str, Any]:
    """Return the fields of architecture and labels, without trust."""
    names = (*RMatConfig.__annotations__, "id2label", "label2id", "problem_type")
    return {name: getattr(config, name) for name in names if name != "trust"}
