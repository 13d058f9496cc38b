"""The attention: the fast form against the plain one, pair features, half precision."""

from collections.abc import Iterable, Iterator
from itertools import chain, combinations
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY_ARCHITECTURE, TINY_SMILES
from transformers import AttentionInterface

from rmat_hf.model.attention_rmat import (
    RMatPairFeatures,
    build_activation,
    compute_plain_attention,
    compute_radial_basis,
)
from rmat_hf.model.configuration_rmat import (
    BEYOND_CUTOFF,
    PAIR_RELATIONS,
    PAIR_TERMS,
    UNREACHABLE_DISTANCE,
    RMatConfig,
)
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification, RMatModel
from rmat_hf.model.processing_rmat import RMatProcessor

# rms of the error over the spread of the outputs, of random weights
MAX_BFLOAT16_ERROR = 0.09
EXACT = {"rtol": 0, "atol": 1e-10}

each_form = pytest.mark.parametrize("form", ["paper", "reference"])


def list_choices(names: Iterable[str], *, least: int) -> list[list[str]]:
    """Return every set of so many names at least."""
    names = list(names)
    sizes = range(least, len(names) + 1)
    return [list(it) for it in chain.from_iterable(combinations(names, size) for size in sizes)]


class Case:
    """The first layer of a float64 model with large random weights, and its inputs."""

    def __init__(self, form: str, *, dropout: float = 0.0, **options: Any) -> None:
        config = RMatConfig(
            **TINY_ARCHITECTURE,
            **options,
            attention_form=form,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        generator = torch.Generator().manual_seed(1)
        model = RMatModel(config).double().train(dropout > 0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator).double())
        batch = dict(RMatProcessor(geometry="bounds")(TINY_SMILES, return_tensors="pt"))
        codes, basis = model.pair_features(
            batch["bond_types"],
            batch["topological_distances"],
            batch["interatomic_distances"].double(),
        )
        self.config, self.layer = config, model.layers[0].self_attention
        mask = batch["attention_mask"]
        self.nodes = mask.bool()
        shape = (*mask.shape, config.hidden_size)
        self.hidden_states = torch.randn(shape, generator=generator).double().requires_grad_()
        self.padding = mask[:, None, None] == 0
        self.radial_basis = basis.requires_grad_()
        self.pair_codes, self.code_features = codes, model.pair_features.code_features

    def run(self, form: str = "fast") -> tuple[torch.Tensor, torch.Tensor]:
        """Return outputs and attention probabilities of the nodes that are not padding."""
        if form == "fast":
            output, probs = self.layer(
                self.hidden_states,
                padding=self.padding,
                pair_codes=self.pair_codes,
                radial_basis=self.radial_basis,
                code_features=self.code_features,
            )
        else:
            pair_features = torch.cat(
                (self.code_features[self.pair_codes], self.radial_basis), dim=-1
            )
            output, probs = compute_plain_attention(
                self.layer, self.hidden_states, padding=self.padding, pair_features=pair_features
            )
        return output[self.nodes], probs.transpose(1, 2)[self.nodes]

    def compute_gradients(self, output: torch.Tensor) -> dict[str, torch.Tensor]:
        inputs = {"hidden_states": self.hidden_states, "radial_basis": self.radial_basis}
        inputs |= dict(self.layer.named_parameters())
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).double()
        loss = (output * weights).sum()
        gradients = torch.autograd.grad(loss, [*inputs.values()], materialize_grads=True)
        return dict(zip(inputs, gradients, strict=True))


# The fast form is the plain one


@each_form
@pytest.mark.parametrize("terms", list_choices(PAIR_TERMS, least=0), ids=str)
@pytest.mark.parametrize("relations", list_choices(PAIR_RELATIONS, least=1), ids=str)
def test_fast_attention_equals_the_plain_equations_in_values_and_gradients(
    form: str, terms: list[str], relations: list[str]
) -> None:
    case = Case(form, pair_terms=terms, pair_relations=relations)
    fast, fast_probs = case.run()
    plain, plain_probs = case.run("plain")
    torch.testing.assert_close(fast, plain, **EXACT)
    torch.testing.assert_close(fast_probs, plain_probs, **EXACT)
    assert plain_probs.std() > 0.05
    ours = case.compute_gradients(fast)
    for name, expected in case.compute_gradients(plain).items():
        torch.testing.assert_close(
            ours[name], expected, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: name + text
        )


def count_weights(**options: Any) -> int:
    return RMatModel(RMatConfig(**TINY_ARCHITECTURE, **options)).num_parameters()


def test_what_takes_no_part_has_no_weights() -> None:
    config = RMatConfig(**TINY_ARCHITECTURE)
    num_layers, head_size = config.num_hidden_layers, config.hidden_size // 4
    per_layer = head_size * (config.num_pair_features + 1) + config.hidden_size * (head_size + 1)
    full, num_bases = count_weights(), TINY_ARCHITECTURE["num_radial_basis"]
    for relation, size in {"bond": 8, "neighborhood": 6, "distance": num_bases}.items():
        others = [name for name in PAIR_RELATIONS if name != relation]
        fewer = count_weights(pair_relations=others)
        assert fewer == full - 2 * num_layers * size * head_size
    assert count_weights(pair_terms=["keys"]) == full - num_layers * per_layer
    # and `v`, which meets the bias on the keys
    without_keys = num_layers * (per_layer + config.hidden_size)
    assert count_weights(pair_terms=["values"]) == full - without_keys


@pytest.mark.parametrize(
    ("relations", "changed", "kept"),
    [
        (["neighborhood", "distance"], "bond_types", "interatomic_distances"),
        (["bond", "distance"], "topological_distances", "bond_types"),
        (["bond", "neighborhood"], "interatomic_distances", "topological_distances"),
    ],
)
def test_a_relation_that_takes_no_part_changes_no_output(
    relations: list[str], changed: str, kept: str, tiny_batch: dict[str, torch.Tensor]
) -> None:
    torch.manual_seed(0)
    model = RMatModel(RMatConfig(**TINY_ARCHITECTURE, pair_relations=relations)).eval()
    output = model(**tiny_batch).pooler_output
    for name in (changed, kept):
        other = torch.ones_like(tiny_batch[name])
        is_equal = torch.equal(model(**(tiny_batch | {name: other})).pooler_output, output)
        assert is_equal == (name == changed)


class FixedDropout(torch.nn.Module):
    """Multiplies by one fixed, asymmetric dropout mask."""

    def __init__(self, *shape: int, generator: torch.Generator) -> None:
        super().__init__()
        self.mask = (torch.rand(*shape, generator=generator) < 0.7).double() / 0.7

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.mask.view(values.shape)


@each_form
def test_fast_attention_equals_the_plain_one_under_the_same_dropout_masks(form: str) -> None:
    case = Case(form)
    layer, (batch_size, num_nodes) = case.layer, case.nodes.shape
    generator = torch.Generator().manual_seed(5)
    pairs = (batch_size, num_nodes, num_nodes)
    for embedding in (layer.key_pairs, layer.value_pairs):
        embedding.dropout = FixedDropout(*pairs, layer.head_size, generator=generator)
    shape = (batch_size, layer.num_heads, num_nodes, num_nodes)
    layer.attention_dropout = FixedDropout(*shape, generator=generator)
    torch.testing.assert_close(case.run()[0], case.run("plain")[0], **EXACT)


# The attention interface of transformers


def attend_as_written(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    pair_scores: list[torch.Tensor],
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a user registers."""
    assert kwargs == {"dropout": 0.0}
    module.num_calls = getattr(module, "num_calls", 0) + 1
    scores = scaling * query @ key.transpose(2, 3) + attention_mask
    probs = sum(pair_scores, scores).softmax(-1)
    return (probs @ value).transpose(1, 2), probs


def attend_without_probabilities(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    return attend_as_written(*args, **kwargs)[0], None


@pytest.fixture
def registered() -> Iterator[None]:
    functions = {"as_written": attend_as_written, "fused": attend_without_probabilities}
    for name, function in functions.items():
        AttentionInterface.register(name, function)
    yield
    for name in functions:
        AttentionInterface._global_mapping.pop(name)


@each_form
@pytest.mark.usefixtures("registered")
def test_a_registered_attention_is_called_in_every_layer_and_sees_the_pairs(
    form: str, processor: RMatProcessor
) -> None:
    torch.manual_seed(0)
    config = RMatConfig(**TINY_ARCHITECTURE, attention_form=form, attention_probs_dropout_prob=0.1)
    model = RMatModel(config).double().eval()
    batch = dict(processor(TINY_SMILES, return_tensors="pt"))
    expected = model(**batch, output_attentions=True)
    model.set_attn_implementation("as_written")
    output = model(**batch, output_attentions=True)
    assert [layer.self_attention.num_calls for layer in model.layers] == [1, 1]
    torch.testing.assert_close(output.pooler_output, expected.pooler_output, **EXACT)
    torch.testing.assert_close(output.attentions, expected.attentions, **EXACT)


@pytest.mark.usefixtures("registered")
def test_an_attention_without_the_probabilities_is_refused(
    tiny_model: RMatForSequenceClassification, tiny_batch: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ValueError, match="eager"):
        tiny_model.set_attn_implementation("sdpa")
    assert tiny_model.config._attn_implementation == "eager"
    tiny_model.set_attn_implementation("fused")
    with pytest.raises(ValueError, match=r"'fused'.*eager"):
        tiny_model(**tiny_batch)


# Memory


def record_saved_shapes(run: Any) -> tuple[Any, list[tuple[int, ...]]]:
    """Return what a function returns, and the shapes of what autograd keeps for it."""
    saved: list[tuple[int, ...]] = []

    def record(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        return run(), saved


@each_form
def test_computing_pairs_again_changes_no_gradient_also_with_dropout(form: str) -> None:
    case = Case(form, dropout=0.3)
    gradients, num_saved = [], []
    for recompute_pairs in (False, True):
        case.layer.config.recompute_pairs = recompute_pairs
        torch.manual_seed(0)
        (output, _), saved = record_saved_shapes(case.run)
        gradients.append(case.compute_gradients(output))
        sizes = [int(np.prod(shape)) for shape in saved]
        num_saved.append(sum(sizes))
        # nothing has a number for every pair, head and place in a head
        num_per_pair = max(sizes) / case.pair_codes.numel()
        assert num_per_pair <= 2 * case.layer.head_size < case.config.hidden_size
    for name, kept in gradients[0].items():
        assert torch.equal(kept, gradients[1][name]), name
    assert num_saved[1] < 0.5 * num_saved[0]


# What is known about a pair


@pytest.mark.parametrize("exponent", [5, 3])
def test_radial_basis_is_zero_from_the_cutoff_on_and_smooth_before(exponent: int) -> None:
    distances = torch.tensor([[0.0, 1.5, 19.9999, 20.0, 25.0, BEYOND_CUTOFF]])
    basis = compute_radial_basis(distances, num_radial_basis=4, cutoff=20.0, exponent=exponent)
    assert basis.shape == (1, 6, 4)
    assert (basis[0, 3:] == 0).all()
    assert basis[0, 2].abs().max() < 1e-6
    torch.testing.assert_close(basis[0, 0], torch.pi * torch.arange(1.0, 5.0), rtol=1e-3, atol=0)
    assert torch.isfinite(basis).all()


def test_radial_basis_of_bfloat16_distances_is_computed_in_float32() -> None:
    distances = torch.tensor([1.25, 3.5], dtype=torch.bfloat16)
    options = {"num_radial_basis": 32, "cutoff": 20.0, "exponent": 5}
    basis = compute_radial_basis(distances, **options)
    assert basis.dtype == torch.float32
    torch.testing.assert_close(basis, compute_radial_basis(distances.float(), **options))


def test_codes_look_up_bond_features_and_neighborhood_order() -> None:
    pair_features = RMatPairFeatures(RMatConfig(**TINY_ARCHITECTURE))
    aromatic_in_ring = 1 + 8 * 1 + 4 + 2 + 1
    bond_types = torch.tensor([[[0, 1, aromatic_in_ring, 33]]], dtype=torch.uint8)
    distances = torch.tensor([[[UNREACHABLE_DISTANCE, 1, 1, 200]]], dtype=torch.uint8)
    codes, basis = pair_features(bond_types, distances, torch.ones(1, 1, 4))
    rows = pair_features.code_features[codes[0, 0]].tolist()
    assert rows[0] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert rows[1] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert rows[2] == [0, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 0]
    assert rows[3] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    assert basis.shape == (1, 1, 4, TINY_ARCHITECTURE["num_radial_basis"])


@pytest.mark.parametrize(("name", "slope"), [("leaky_relu", 0.1), ("gelu", None)])
def test_activation_is_the_configured_one(name: str, slope: float | None) -> None:
    values = torch.tensor([-2.0, 3.0])
    activation = build_activation(RMatConfig(**{**TINY_ARCHITECTURE, "hidden_act": name}))
    expected = torch.where(values < 0, slope * values, values) if slope else torch.nn.GELU()(values)
    assert torch.equal(activation(values.clone()), expected)


def test_an_unknown_activation_is_refused_with_the_names_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"'sellu' is unknown.*elu.*selu"):
        RMatModel(RMatConfig(**TINY_ARCHITECTURE, feed_forward_act="sellu"))


# Half precision


@each_form
@pytest.mark.parametrize("way", ["autocast", "loaded in bfloat16", "loaded, autocast"])
def test_half_precision_keeps_the_outputs_exact_enough(
    way: str, form: str, processor: RMatProcessor
) -> None:
    errors = []
    for seed in range(5):
        torch.manual_seed(seed)
        labels = dict(enumerate("abcdefgh"))
        config = RMatConfig(**TINY_ARCHITECTURE, attention_form=form, id2label=labels)
        model = RMatForSequenceClassification(config).eval()
        batch = dict(processor(TINY_SMILES, return_tensors="pt"))
        with torch.no_grad():
            exact = model(**batch).logits
            if way != "autocast":
                model = RMatForSequenceClassification.from_pretrained(
                    None, config=config, state_dict=model.state_dict(), dtype=torch.bfloat16
                ).eval()
                assert model.classifier.out_proj.weight.dtype == torch.bfloat16
            with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in way):
                rounded = model(**batch).logits
        errors.append((exact - rounded).square().mean().sqrt() / exact.std(0).mean())
    assert torch.stack(errors).median() < MAX_BFLOAT16_ERROR


@each_form
def test_gradients_under_autocast_are_those_without_it(form: str, processor: RMatProcessor) -> None:
    batch = dict(processor(TINY_SMILES, return_tensors="pt"))
    torch.manual_seed(0)
    config = RMatConfig(**TINY_ARCHITECTURE, attention_form=form, id2label={0: "label"})
    model = RMatForSequenceClassification(config).eval()
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(**batch).logits
        parameters = [value for name, value in model.named_parameters() if "proj.weight" in name]
        gradients.append(torch.autograd.grad(logits.sum(), parameters))
    for exact, rounded in zip(*gradients, strict=True):
        assert (rounded - exact).norm() < 0.05 * exact.norm()
