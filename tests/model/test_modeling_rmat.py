"""Model: exactness against the plain equations and golden outputs, invariances, heads."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem
from tiny import TINY_ARCHITECTURE, TINY_SMILES
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from rmat_hf.loading import checkpoint_path
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import (
    RMatForPreTraining,
    RMatForSequenceClassification,
    RMatForTokenClassification,
    RMatModel,
)
from rmat_hf.model.processing_rmat import RMatProcessor

Batch = dict[str, torch.Tensor]
HEADS = [
    RMatModel,
    RMatForPreTraining,
    RMatForSequenceClassification,
    RMatForTokenClassification,
]


@pytest.mark.parametrize("pooling", ["attention", "mean", "dummy_node"])
def test_padding_and_batch_mates_do_not_change_the_outputs(
    pooling: str, processor: RMatProcessor
) -> None:
    torch.manual_seed(0)
    model = RMatModel(RMatConfig(**TINY_ARCHITECTURE, pooling=pooling)).double().eval()

    def run(smiles: list[str], **padding: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        batch = dict(processor(smiles, return_tensors="pt", **padding))
        with torch.no_grad():
            output = model(**batch)
        nodes = zip(output.last_hidden_state, batch["attention_mask"].bool(), strict=True)
        return list(zip((it[mask] for it, mask in nodes), output.pooler_output, strict=True))

    together = run(TINY_SMILES, pad_to_multiple_of=16)
    for outputs, smiles in zip(together, TINY_SMILES, strict=True):
        torch.testing.assert_close(outputs, run([smiles])[0], rtol=0, atol=1e-12)
    assert (together[0][1] - together[1][1]).abs().max() > 1e-3


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), smiles=st.sampled_from([s for s in TINY_SMILES if s != "C"]))
def test_atom_order_permutes_the_nodes_and_keeps_the_molecule_vector(
    seed: int, smiles: str
) -> None:
    torch.manual_seed(3)
    model = RMatModel(RMatConfig(**TINY_ARCHITECTURE)).double().eval()
    processor = RMatProcessor(geometry="bounds")
    mol = Chem.MolFromSmiles(smiles)
    order = np.random.default_rng(seed).permutation(mol.GetNumAtoms())
    renumbered = Chem.RenumberAtoms(mol, order.tolist())
    with torch.no_grad():
        output = model(**processor(mol, return_tensors="pt"))
        permuted = model(**processor(renumbered, return_tensors="pt"))
    torch.testing.assert_close(output.pooler_output, permuted.pooler_output, rtol=0, atol=1e-5)
    nodes = output.last_hidden_state[0, 1:][torch.from_numpy(order)]
    torch.testing.assert_close(nodes, permuted.last_hidden_state[0, 1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "num_head_layers"),
    [
        ("attention", 1),
        pytest.param("mean", 2, marks=pytest.mark.slow),
        pytest.param("dummy_node", 2, marks=pytest.mark.slow),
    ],
)
def test_a_model_overfits_eight_molecules(
    pooling: str, num_head_layers: int, processor: RMatProcessor
) -> None:
    torch.manual_seed(0)
    config = RMatConfig(
        **TINY_ARCHITECTURE,
        num_labels=1,
        problem_type="regression",
        pooling=pooling,
        num_head_layers=num_head_layers,
        label_mean=[-4.0],
        label_std=[3.0],
    )
    model = RMatForSequenceClassification(config)
    batch = dict(processor([*TINY_SMILES, "CCCCCC", "OCC(O)CO"], return_tensors="pt"))
    labels = torch.tensor([-5.0, -7.5, 2.0, -9.0, -4.4, -1.0, 2.5, -10.0]).unsqueeze(-1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(150):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    assert (model(**batch).logits - labels).abs().max() < 0.3


def test_regression_logits_are_in_the_units_of_the_labels_and_the_loss_is_standardized(
    tiny_config: RMatConfig, tiny_batch: Batch
) -> None:
    torch.manual_seed(0)
    plain = RMatForSequenceClassification(tiny_config).eval()
    tiny_config.label_mean, tiny_config.label_std = [100.0], [10.0]
    scaled = RMatForSequenceClassification(tiny_config).eval()
    scaled.load_state_dict(plain.state_dict())
    labels = torch.full((len(TINY_SMILES), 1), 110.0)
    output = scaled(**tiny_batch, labels=labels)
    tiny_config.label_mean = tiny_config.label_std = None
    raw = plain(**tiny_batch).logits
    torch.testing.assert_close(output.logits, raw * 10 + 100)
    torch.testing.assert_close(output.loss, ((raw - 1) ** 2).mean())


def test_gradient_checkpointing_gives_the_same_gradients(
    tiny_model: RMatForSequenceClassification, tiny_batch: Batch
) -> None:
    labels = torch.ones(len(TINY_SMILES), 1)
    tiny_model.train()

    def compute_gradients() -> list[torch.Tensor]:
        tiny_model.zero_grad()
        tiny_model(**tiny_batch, labels=labels).loss.backward()
        return [parameter.grad.clone() for parameter in tiny_model.parameters()]

    expected = compute_gradients()
    # the name that all supported releases of transformers know
    tiny_model.gradient_checkpointing_enable()
    assert tiny_model.is_gradient_checkpointing
    for ours, theirs in zip(compute_gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_weights_offloaded_to_main_memory_give_the_same_outputs(
    tiny_model: RMatForSequenceClassification, tiny_batch: Batch
) -> None:
    """accelerate fills the weights of a module when that module is called, and no others."""
    expected = tiny_model(**tiny_batch).logits
    offloaded = cpu_offload(tiny_model, execution_device=torch.device("cpu"))
    weights = [*offloaded.parameters()]
    assert {weight.device.type for weight in weights} == {"meta"}
    torch.testing.assert_close(offloaded(**tiny_batch).logits, expected)


def test_hidden_states_and_attentions_are_recorded_on_request(
    tiny_model: RMatForSequenceClassification, tiny_batch: Batch
) -> None:
    output = tiny_model(**tiny_batch, output_hidden_states=True, output_attentions=True)
    batch_size, num_nodes = tiny_batch["attention_mask"].shape
    assert len(output.hidden_states) == 3
    assert len(output.attentions) == 2
    assert output.attentions[0].shape == (batch_size, 4, num_nodes, num_nodes)
    torch.testing.assert_close(output.attentions[1].sum(-1), torch.ones(batch_size, 4, num_nodes))
    to_padding = output.attentions[0].transpose(1, -1)[tiny_batch["attention_mask"] == 0]
    assert (to_padding == 0).all()
    assert tiny_model(**tiny_batch).attentions is None


@pytest.mark.parametrize("head", [RMatModel, RMatForPreTraining, RMatForSequenceClassification])
def test_arrays_in_the_place_of_tensors_are_refused_with_the_option_that_makes_tensors(
    head: Any, processor: RMatProcessor
) -> None:
    model = head(RMatConfig(**TINY_ARCHITECTURE))
    for padding in (True, False):
        with pytest.raises(TypeError, match='return_tensors="pt"'):
            model(**processor("CCO", padding=padding))


@pytest.mark.slow
def test_compiled_code_gives_the_same_outputs_for_batches_of_other_sizes(
    tiny_model: RMatForSequenceClassification, processor: RMatProcessor
) -> None:
    """With the default backend, which writes and compiles C++, and gradients."""
    compiled = torch.compile(tiny_model, fullgraph=True, dynamic=True)
    for smiles in (TINY_SMILES, TINY_SMILES[:4], ["CCCCCCCCCCCC", "CO"]):
        batch = dict(processor(smiles, return_tensors="pt"))
        outputs = []
        for model in (tiny_model, compiled):
            tiny_model.zero_grad()
            logits = model(**batch).logits
            logits.sum().backward()
            outputs.append((logits, tiny_model.rmat.embeddings.node_proj.weight.grad.clone()))
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiles_without_graph_breaks(
    tiny_model: RMatForSequenceClassification, tiny_batch: Batch
) -> None:
    expected = tiny_model(**tiny_batch).logits
    compiled = torch.compile(tiny_model, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(**tiny_batch).logits, expected, rtol=1e-5, atol=1e-6)


def test_descriptor_scaler_ignores_missing_values_and_clips_outliers() -> None:
    config = RMatConfig(**TINY_ARCHITECTURE, num_labels=1, num_molecule_descriptors=3)
    scaler = RMatForSequenceClassification(config).descriptor_scaler
    raw = torch.tensor([[1.0, torch.nan, 5.0], [3.0, 2.0, 5.0], [2.0, 4.0, 5.0]])
    scaler.fit(raw)
    torch.testing.assert_close(scaler.mean, torch.tensor([2.0, 3.0, 5.0]))
    scaled = scaler(torch.tensor([[2.0, torch.nan, 6.0], [1e30, torch.inf, -torch.inf]]))
    torch.testing.assert_close(scaled, torch.tensor([[0.0, 0.0, 1.0], [8.0, 8.0, -8.0]]))


def test_pretraining_losses_count_masked_centers_and_known_descriptors_only(
    tiny_config: RMatConfig, tiny_batch: Batch
) -> None:
    torch.manual_seed(0)
    model = RMatForPreTraining(tiny_config).eval()
    labels = torch.full(tiny_batch["attention_mask"].shape, -100)
    labels[0, 1], labels[1, 2] = 3, 7
    descriptor_labels = torch.full((len(TINY_SMILES), 5), torch.nan)
    descriptor_labels[2, 4] = 0.5
    output = model(**tiny_batch, labels=labels, descriptor_labels=descriptor_labels)
    log_probs = output.context_logits.log_softmax(-1)
    context_loss = -(log_probs[0, 1, 3] + log_probs[1, 2, 7]) / 2
    descriptor_loss = (output.descriptor_logits[2, 4] - 0.5) ** 2
    torch.testing.assert_close(output.context_loss, context_loss)
    torch.testing.assert_close(output.descriptor_loss, descriptor_loss)
    torch.testing.assert_close(output.loss, context_loss + descriptor_loss)
    assert model(**tiny_batch, labels=labels).descriptor_loss is None
    assert model(**tiny_batch).loss is None


def test_heads_of_any_name_level_and_loss_are_built_from_the_configuration(
    tiny_batch: Batch, tmp_path: Path
) -> None:
    heads = {
        "charge": {"level": "node", "size": 1, "loss": "regression"},
        "assay": {"level": "molecule", "size": 3, "loss": "multi_label_classification"},
    }
    torch.manual_seed(0)
    model = RMatForPreTraining(RMatConfig(**TINY_ARCHITECTURE, pretraining_heads=heads)).eval()
    num_molecules, num_nodes = tiny_batch["attention_mask"].shape
    charges = torch.full((num_molecules, num_nodes, 1), torch.nan)
    charges[0, 1], charges[1, 2] = 0.5, -0.25
    assays = torch.full((num_molecules, 3), torch.nan)
    assays[2, 1] = 1.0
    output = model(**tiny_batch, charge_labels=charges, assay_labels=assays)
    assert output.logits["charge"].shape == (num_molecules, num_nodes, 1)
    errors = output.logits["charge"][[0, 1], [1, 2], 0] - torch.tensor([0.5, -0.25])
    torch.testing.assert_close(output.losses["charge"], (errors**2).mean())
    expected = -torch.nn.functional.logsigmoid(output.logits["assay"][2, 1])
    torch.testing.assert_close(output.losses["assay"], expected)
    torch.testing.assert_close(output.loss, output.losses["charge"] + output.losses["assay"])
    assert output.context_logits is None

    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert {"charge_head.weight", "assay_head.bias"} <= set(loaded.state_dict())
    _, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info


@torch.no_grad()
@pytest.mark.parametrize(
    ("model_class", "auto_class", "output"),
    [
        (RMatForSequenceClassification, AutoModelForSequenceClassification, "logits"),
        (RMatForPreTraining, AutoModelForPreTraining, "context_logits"),
        (RMatModel, AutoModel, "pooler_output"),
    ],
)
def test_every_auto_class_loads_what_was_saved(
    model_class: type, auto_class: Any, output: str, tiny_batch: Batch, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = model_class(RMatConfig(**TINY_ARCHITECTURE, num_labels=1)).eval()
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    # equal weights; where they lie in memory can change the last bit of a matmul
    tolerance = {"rtol": 0, "atol": 1e-6}
    expected = model(**tiny_batch)[output]
    torch.testing.assert_close(loaded(**tiny_batch)[output], expected, **tolerance)
    pooled = model.base_model(**tiny_batch).pooler_output
    torch.testing.assert_close(encoder(**tiny_batch).pooler_output, pooled, **tolerance)


@pytest.mark.parametrize("head", HEADS)
def test_nothing_stays_as_it_was_allocated_when_all_weights_are_missing(
    head: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers allocates what a checkpoint lacks with `empty_like`: whatever is in memory."""
    config = RMatConfig(**TINY_ARCHITECTURE, num_labels=1, num_molecule_descriptors=3)
    allocate = torch.empty_like

    def allocate_nan(*args: Any, **kwargs: Any) -> torch.Tensor:
        return allocate(*args, **kwargs).fill_(torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", allocate_nan)
        model = head.from_pretrained(None, config=config, state_dict={})
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert [name for name, values in tensors if values.isnan().any()] == []


def test_weights_start_from_the_distributions_of_the_documentation(tiny_config: RMatConfig) -> None:
    torch.manual_seed(0)
    model = RMatForPreTraining(tiny_config)
    head_size = tiny_config.hidden_size // tiny_config.num_attention_heads
    # the pair networks are one layer each in the publication, and start as such
    first = tiny_config.num_pair_features + head_size
    second = tiny_config.hidden_size + head_size
    joint_sizes = {"code_proj.weight": first, "radial_proj.weight": first}
    joint_sizes |= {"key_pair_weight": second, "value_pair_weight": second}
    for name, weight in model.named_parameters():
        joint_size = joint_sizes.get(name.split("self_attention.")[-1].split("_pairs.")[-1])
        if name.endswith(("content_bias", "pair_bias")):
            std = weight.std().item()
            assert std == pytest.approx(tiny_config.initializer_range, rel=0.3), name
        elif joint_size or name.endswith(("proj.weight", "head.weight")):
            # of Xavier's uniform distribution
            limit = math.sqrt(6 / (joint_size or sum(weight.shape)))
            assert weight.abs().max().item() == pytest.approx(limit, rel=0.1), name
        else:
            assert set(weight.unique().tolist()) == {float(name.endswith("norm.weight"))}, name


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"hidden_dropout_prob": 0.2}, (0.2, 0.2)),
        ({"hidden_dropout_prob": 0.2, "classifier_dropout": 0.0}, (0.2, 0.0)),
        ({"classifier_dropout": 0.3}, (0.0, 0.3)),
    ],
)
def test_the_head_can_have_a_dropout_of_its_own(
    options: dict[str, float], expected: tuple[float, float]
) -> None:
    model = RMatForSequenceClassification(RMatConfig(**TINY_ARCHITECTURE, **options))
    others = [m.p for name, m in model.rmat.named_modules() if name.endswith(".dropout")]
    assert ({*others}, model.classifier.dropout.p) == ({expected[0]}, expected[1])


@torch.no_grad()
@pytest.mark.parametrize("head_norm", [True, False])
def test_a_two_layer_head_has_a_norm_if_it_is_asked_for(head_norm: bool) -> None:
    config = RMatConfig(**TINY_ARCHITECTURE, num_head_layers=2, head_norm=head_norm)
    head = RMatForSequenceClassification(config).eval().classifier
    pooled = torch.randn(3, config.num_pooling_heads * config.hidden_size)
    hidden = torch.nn.functional.leaky_relu(head.dense(pooled), config.leaky_relu_slope)
    if head_norm:
        hidden = torch.layer_norm(hidden, hidden.shape[-1:], eps=config.layer_norm_eps)
    torch.testing.assert_close(head(pooled), head.out_proj(hidden), rtol=0, atol=1e-6)
    assert any(name.startswith("norm.") for name, _ in head.named_parameters()) == head_norm


@pytest.mark.parametrize("head", HEADS)
def test_a_configuration_may_ask_for_tuples(head: type, tiny_batch: Batch) -> None:
    torch.manual_seed(0)
    model = head(RMatConfig(**TINY_ARCHITECTURE, num_labels=1)).eval()
    expected = model(**tiny_batch).to_tuple()
    model.config.return_dict = False
    outputs = model(**tiny_batch)
    assert isinstance(outputs, tuple) and len(outputs) == len(expected)
    assert not isinstance(model(**tiny_batch, return_dict=True), tuple)


# Atoms


def build_atom_model(num_labels: int, problem_type: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    options = {"num_labels": num_labels, "problem_type": problem_type, **fields}
    return RMatForTokenClassification(RMatConfig(**TINY_ARCHITECTURE, **options)).double().eval()


@pytest.mark.parametrize(
    ("problem_type", "num_labels"),
    [
        ("regression", 1),
        ("regression", 2),
        ("multi_label_classification", 2),
        ("single_label_classification", 3),
    ],
)
def test_the_loss_of_atoms_is_that_of_torch_over_the_labels_that_are_known(
    problem_type: str, num_labels: int, tiny_batch: Batch
) -> None:
    scaling = {"label_mean": [3.0] * num_labels, "label_std": [2.0] * num_labels}
    is_regression = problem_type == "regression"
    model = build_atom_model(num_labels, problem_type, **(scaling if is_regression else {}))
    is_atom = tiny_batch["attention_mask"].bool()
    is_atom[:, 0] = False
    is_class = problem_type == "single_label_classification"
    labels = torch.randint(2, (*is_atom.shape, 1 if is_class else num_labels)).double()
    labels[2:5, 2] = torch.nan
    logits = model(**tiny_batch).logits
    assert logits.shape == (*is_atom.shape, num_labels)
    known = is_atom[..., None] & ~labels.isnan()
    if is_class:
        known = known[..., 0]
        expected = torch.nn.functional.cross_entropy(logits[known], labels[known][:, 0].long())
    elif is_regression:
        expected = (((logits - labels)[known] / 2) ** 2).mean()
    else:
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        expected = loss(logits[known], labels[known])
    # whatever stands at the dummy node and at padding, in transformers -100
    labels[~is_atom] = -100.0
    for arranged in (labels, labels.squeeze(-1)):
        loss = model(**tiny_batch, labels=arranged).loss
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    assert model(**tiny_batch, labels=torch.full_like(labels, torch.nan)).loss.item() == 0.0


def test_predictions_of_atoms_follow_their_order(processor: RMatProcessor) -> None:
    model = build_atom_model(2, "regression")
    mol = Chem.MolFromSmiles("c1ccccc1C(=O)OCCN")
    order = np.random.default_rng(0).permutation(mol.GetNumAtoms())
    renumbered = Chem.RenumberAtoms(mol, order.tolist())
    logits = model(**processor(mol, return_tensors="pt")).logits[0, 1:]
    permuted = model(**processor([renumbered, "C" * 20], return_tensors="pt")).logits[0, 1:13]
    torch.testing.assert_close(logits[torch.from_numpy(order)], permuted, rtol=0, atol=1e-6)
    assert logits.std(0).min() > 1e-3


@pytest.mark.slow
def test_a_model_overfits_the_atoms_of_eight_molecules(processor: RMatProcessor) -> None:
    model = build_atom_model(1, "regression", label_mean=[7.0], label_std=[4.0]).float()
    batch = dict(processor([*TINY_SMILES, "CCCCCC", "OCC(O)CO"], return_tensors="pt"))
    # how far the atom is from the first one of its molecule, and what it is
    elements = batch["node_features"].argmax(-1, keepdim=True).float()
    labels = elements + batch["topological_distances"][:, 1, :, None].clamp(max=9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(200):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    assert model(**batch, labels=labels).loss.item() < 0.05


def test_a_pretrained_encoder_lacks_the_head_of_atoms_only() -> None:
    model, info = AutoModelForTokenClassification.from_pretrained(
        checkpoint_path("rmat-small"), num_labels=3, output_loading_info=True
    )
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"}
    assert not info["unexpected_keys"]
    encoder = AutoModel.from_pretrained(checkpoint_path("rmat-small"))
    for name, weight in model.rmat.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], weight), name
