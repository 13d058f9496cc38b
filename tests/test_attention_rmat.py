"""The attention as a module; its values and gradients are tested in test_modeling_rmat.py."""

import pytest
import torch
from tiny import TINY_ARCHITECTURE, TINY_SMILES

from rmat_hf.attention_rmat import RMatPairEmbedding, RMatSelfAttention, build_activation
from rmat_hf.configuration_rmat import RMatConfig
from rmat_hf.modeling_rmat import RMatForSequenceClassification, RMatModel
from rmat_hf.processing_rmat import RMatProcessor

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


def test_autocast_rounds_how_queries_and_keys_differ_and_not_what_they_have_in_common() -> None:
    torch.manual_seed(0)
    layer = RMatModel(RMatConfig(**TINY_ARCHITECTURE)).layers[0].self_attention
    assert isinstance(layer, RMatSelfAttention)
    projections = (layer.q_proj, layer.k_proj)
    for projection in projections:
        torch.nn.init.normal_(projection.bias, std=0.1)
    common = 10 * torch.randn(3, 1, TINY_ARCHITECTURE["hidden_size"])
    hidden_states = common + 0.1 * torch.randn(3, 7, TINY_ARCHITECTURE["hidden_size"])
    padding = torch.zeros(3, 1, 1, 7, dtype=torch.bool)
    padding[1, ..., 4:] = True
    is_node = ~padding[:, 0, 0]
    other_padding = hidden_states.masked_fill(padding[:, 0, 0, :, None], 1e3)
    with torch.no_grad():
        exact = layer.project(hidden_states, padding)
        with torch.autocast("cpu", torch.bfloat16):
            ours = layer.project(hidden_states, padding)
            all_rounded = [layer.split_heads(linear(hidden_states)) for linear in projections]
            repeated = layer.project(other_padding, padding)

    def find_error(values: torch.Tensor, side: int) -> torch.Tensor:
        return (values - exact[side])[:, is_node].abs().max()

    for side in range(2):
        assert find_error(ours[side], side) < 0.1 * find_error(all_rounded[side], side)
    for kept, other in zip(ours, repeated, strict=True):
        assert torch.equal(kept[:, is_node], other[:, is_node])
