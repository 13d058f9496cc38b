"""The attention as a module; its values and gradients are tested in test_modeling_rmat.py."""

import pytest
import torch
from tiny import TINY_ARCHITECTURE, TINY_SMILES

from rmat_hf.model.attention_rmat import RMatPairEmbedding, RMatSelfAttention, build_activation
from rmat_hf.model.centered_linear_rmat import compute_atom_weights
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification, RMatModel
from rmat_hf.model.processing_rmat import RMatProcessor

# rms of the error over the spread of the outputs, of random weights
MAX_BFLOAT16_ERROR = 0.09


@pytest.mark.parametrize(("name", "slope"), [("leaky_relu", 0.1), ("gelu", None)])
def test_activation_is_the_configured_one(name: str, slope: float | None) -> None:
    values = torch.tensor([-2.0, 3.0])
    activation = build_activation(RMatConfig(**{**TINY_ARCHITECTURE, "hidden_act": name}))
    expected = torch.where(values < 0, slope * values, values) if slope else torch.nn.GELU()(values)
    assert torch.equal(activation(values.clone()), expected)


def test_a_pair_embedding_equals_one_linear_layer_on_all_features(
    processor: RMatProcessor,
) -> None:
    config = RMatConfig(**TINY_ARCHITECTURE)
    model = RMatModel(config).double()
    embedding = RMatPairEmbedding(config).double()
    batch = processor(TINY_SMILES, return_tensors="pt")
    codes, basis = model.pair_features(
        batch["bond_types"],
        batch["topological_distances"],
        batch["interatomic_distances"].double(),
    )
    code_features = model.pair_features.code_features
    weight = torch.cat((embedding.code_proj.weight, embedding.radial_proj.weight), dim=1)
    everything = torch.cat((code_features[codes], basis), dim=-1)
    expected = embedding.act_fn(everything @ weight.T + embedding.code_proj.bias)
    torch.testing.assert_close(embedding(codes, basis, code_features), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("attention_form", ["paper", "reference"])
@pytest.mark.parametrize("way", ["autocast", "loaded in bfloat16"])
def test_half_precision_keeps_the_relations_exact_enough(
    way: str, attention_form: str, processor: RMatProcessor
) -> None:
    errors = []
    for seed in range(5):
        torch.manual_seed(seed)
        config = RMatConfig(
            **TINY_ARCHITECTURE, attention_form=attention_form, id2label=dict(enumerate("abcdefgh"))
        )
        model = RMatForSequenceClassification(config).eval()
        batch = dict(processor(TINY_SMILES, return_tensors="pt"))
        with torch.no_grad():
            exact = model(**batch).logits
            if way == "autocast":
                with torch.autocast("cpu", torch.bfloat16):
                    rounded = model(**batch).logits
            else:
                half = RMatForSequenceClassification.from_pretrained(
                    None, config=config, state_dict=model.state_dict(), dtype=torch.bfloat16
                )
                embedding = half.rmat.layers[0].self_attention.key_pairs
                assert embedding.radial_proj.weight.dtype == torch.float32
                assert half.classifier.out_proj.weight.dtype == torch.bfloat16
                rounded = half.eval()(**batch).logits
        errors.append((exact - rounded).square().mean().sqrt() / exact.std(0).mean())
    assert torch.stack(errors).median() < MAX_BFLOAT16_ERROR


def build_noisy_layer() -> RMatSelfAttention:
    """Return a layer with random biases, so that every term counts."""
    torch.manual_seed(0)
    layer = RMatModel(RMatConfig(**TINY_ARCHITECTURE)).layers[0].self_attention
    assert isinstance(layer, RMatSelfAttention)
    for projection in (layer.q_proj, layer.k_proj, layer.o_proj):
        torch.nn.init.normal_(projection.bias, std=0.1)
    return layer


def draw_states(*, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return states of three molecules with much in common, and their mask: the second is small."""
    torch.manual_seed(seed)
    size = TINY_ARCHITECTURE["hidden_size"]
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return 10 * torch.randn(3, 1, size) + 0.1 * torch.randn(3, 7, size), mask


def test_autocast_rounds_how_queries_and_keys_differ_and_not_what_they_have_in_common() -> None:
    layer = build_noisy_layer()
    hidden_states, mask = draw_states(seed=1)
    weights, is_node = compute_atom_weights(mask), mask.bool()
    other_padding = hidden_states.masked_fill(mask.unsqueeze(-1) == 0, 1e3)
    with torch.no_grad():
        exact = layer.project(hidden_states, weights)
        with torch.autocast("cpu", torch.bfloat16):
            ours = layer.project(hidden_states, weights)
            all_rounded = [
                layer.split_heads(linear(hidden_states)) for linear in (layer.q_proj, layer.k_proj)
            ]
            repeated = layer.project(other_padding, weights)
    all_rounded[0] += layer.pair_bias[:, None, None]

    def find_error(values: torch.Tensor, side: int) -> torch.Tensor:
        return (values - exact[side])[:, is_node].abs().max()

    for side in range(2):
        assert find_error(ours[side], side) < 0.1 * find_error(all_rounded[side], side)
    for kept, other in zip(ours, repeated, strict=True):
        assert torch.equal(kept[:, is_node], other[:, is_node])


def test_autocast_does_not_round_what_the_outputs_of_the_atoms_have_in_common() -> None:
    layer = build_noisy_layer()
    merged, mask = draw_states(seed=2)
    # the dummy node is far from the atoms
    merged[:, 0] *= -3
    context = merged.unflatten(-1, (layer.num_heads, layer.head_size)).permute(2, 0, 1, 3)
    weights, is_atom = compute_atom_weights(mask), mask.bool()
    is_atom[:, 0] = False
    with torch.no_grad():
        exact = layer.merge_heads(context.clone(), weights, torch.float32)
        torch.testing.assert_close(exact, layer.o_proj(merged))
        with torch.autocast("cpu", torch.bfloat16):
            ours = layer.merge_heads(context.clone(), weights, torch.float32)
            all_rounded = layer.o_proj(merged)
    assert ours.dtype == torch.float32
    error = (ours - exact)[is_atom].abs().max()
    assert error < 0.1 * (all_rounded - exact)[is_atom].abs().max()
    # the mean is not taken off the dummy node, which it would only enlarge
    torch.testing.assert_close(ours[:, 0], all_rounded[:, 0].float())


@pytest.mark.parametrize("attention_form", ["paper", "reference"])
def test_gradients_under_autocast_are_those_without_it(
    attention_form: str, processor: RMatProcessor
) -> None:
    batch = dict(processor(TINY_SMILES, return_tensors="pt"))
    torch.manual_seed(0)
    config = RMatConfig(**TINY_ARCHITECTURE, attention_form=attention_form, id2label={0: "label"})
    model = RMatForSequenceClassification(config).eval()
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(**batch).logits
        parameters = [value for name, value in model.named_parameters() if "proj.weight" in name]
        gradients.append(torch.autograd.grad(logits.sum(), parameters))
    for exact, rounded in zip(*gradients, strict=True):
        assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_half_weights_are_used_as_they_are_under_autocast() -> None:
    layer = build_noisy_layer().bfloat16()
    hidden_states, mask = draw_states(seed=3)
    hidden_states = hidden_states.bfloat16()
    with torch.no_grad():
        expected = layer.project(hidden_states, compute_atom_weights(mask))
        with torch.autocast("cpu", torch.bfloat16):
            ours = layer.project(hidden_states, compute_atom_weights(mask))
    for values, others in zip(ours, expected, strict=True):
        torch.testing.assert_close(values, others)


def test_autocast_leaves_float64_alone(processor: RMatProcessor) -> None:
    batch = dict(processor(TINY_SMILES, return_tensors="pt"))
    model = RMatModel(RMatConfig(**TINY_ARCHITECTURE)).double().eval()
    with torch.no_grad():
        exact = model(**batch).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = model(**batch).last_hidden_state
    assert under_autocast.dtype == torch.float64
    torch.testing.assert_close(under_autocast, exact, rtol=0, atol=1e-12)
