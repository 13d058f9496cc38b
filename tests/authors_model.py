"""R-MAT as the authors' code computes it, atom by atom and pair by pair, in float64.

Written from the equations (arXiv 2110.05841, section 3) and from what is known of their code, and
not from ours: nothing of the package is imported. Slow, and an oracle for the converter.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from safetensors.torch import save_file

ELEMENTS = [5, 6, 7, 8, 9, 15, 16, 17, 35, 53, 999]
BEYOND = 1e6
CONFIG: dict[str, Any] = {
    "d_atom": 37,
    "d_edge": 46,
    "d_model": 32,
    "init_type": "uniform",
    "dropout": 0.0,
    "envelope_num_radial": 32,
    "envelope_cutoff": 20.0,
    "envelope_exponent": 5.0,
    "encoder_n_layers": 2,
    "encoder_n_attn_heads": 4,
    "ffn_activation": "LeakyReLU",
    "ffn_n_layers": 2,
    "ffn_d_hidden": 40,
    "ffn_d_output": 32,
    "generator_aggregation": "grover",
    "generator_n_layers": 1,
    "generator_d_outputs": 3,
    "generator_features_generators": None,
    "generator_d_generated_features": 0,
}
# Hydrogens that are nodes (isotopes, a hydride, one that defines the stereo of a bond),
# charges, metals, single atoms, more neighbors and other bonds than there are classes for.
SMILES = [
    *("[2H]C([2H])O", "[3H]c1ccccc1", "[H]/N=C(/C)c1ccccc1", "[Li+].[H-]", "C[Mg]Br"),
    *("C[N+](C)(C)CC([O-])=O", "[O-]C(=O)c1ccccc1.[Na+]", "[NH3+]CC[O-]", "[Fe+2]"),
    *("N[Pt](N)(Cl)Cl", "C[Hg]C", "C", "[Xe]", "F[P-](F)(F)(F)(F)F", "[Cr]$[Cr]"),
    *("OB(O)c1ccc(I)cc1S(N)(=O)=O", "C1CC2CCC1C2", "CC(C)(C)OC(=O)N[C@@H](CS)C#N"),
]
# One row of the table each: what differs from `CONFIG`.
OPTIONS: list[dict[str, Any]] = [
    *({"ffn_activation": name} for name in ("ReLU", "LeakyReLU", "PReLU", "tanh")),
    *({"ffn_activation": name} for name in ("SELU", "ELU", "Linear")),
    *({"ffn_n_layers": number} for number in (1, 3, 5)),
    {"ffn_n_layers": 1, "ffn_activation": "PReLU", "ffn_d_hidden": None, "ffn_d_output": None},
    {"ffn_n_layers": 3, "ffn_activation": "SELU"},
    {"ffn_d_hidden": None},
    *({"generator_n_layers": number} for number in (2, 3, 4)),
    {"generator_aggregation": "mean"},
    {"generator_aggregation": "mean", "generator_n_layers": 2},
    {"generator_aggregation": "mean", "generator_n_layers": 3, "d_model": 128, "ffn_d_output": 128},
    {"generator_aggregation": "contextual", "generator_d_outputs": 11},
    {"generator_aggregation": "contextual", "generator_n_layers": 2},
    {"generator_d_generated_features": 5},
    {"generator_d_generated_features": 5, "generator_n_layers": 2},
    {"envelope_num_radial": 16, "d_edge": 30, "envelope_cutoff": 6.5},
    {"envelope_exponent": 3.0},
    {"envelope_exponent": 4.5},
    {"encoder_n_layers": 1, "encoder_n_attn_heads": 1},
    {"encoder_n_layers": 3, "encoder_n_attn_heads": 8},
    {"init_type": "normal", "dropout": 0.2, "generator_return_representations_dict": True},
]


class Features(NamedTuple):
    """What the authors' network sees of a molecule; the first node is the dummy node."""

    nodes: np.ndarray
    pairs: np.ndarray
    distances: np.ndarray


def build_molecules() -> list[Chem.Mol]:
    """Return molecules with all their hydrogens and a conformer, as their RemoveHs gets them."""
    mols = []
    for smiles in SMILES:
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        assert rdDistGeom.EmbedMolecule(mol, useRandomCoords=True, randomSeed=7) != -1, smiles
        mols.append(mol)
    return mols


def one_hot(value: float, choices: list[Any]) -> list[int]:
    """A value outside the list falls in the last class."""
    index = choices.index(value) if value in choices else len(choices) - 1
    return [int(index == position) for position in range(len(choices))]


def featurize(mol: Chem.Mol, config: dict[str, Any]) -> Features:
    """Section 1 of the facts: nodes, bonds, orders of neighborhoods, distances."""
    mol = Chem.RemoveHs(mol)
    num_nodes = 1 + mol.GetNumAtoms()
    nodes = np.zeros((num_nodes, 37))
    nodes[0, 1] = 1
    for number, atom in enumerate(mol.GetAtoms(), 1):
        nodes[number, 2:] = [
            *one_hot(atom.GetAtomicNum(), ELEMENTS),
            *one_hot(len(atom.GetNeighbors()), list(range(6))),
            *one_hot(atom.GetTotalNumHs(), list(range(5))),
            *one_hot(atom.GetFormalCharge(), list(range(-5, 6))),
            *(atom.IsInRing(), atom.GetIsAromatic()),
        ]
    bonds, paths = np.zeros((num_nodes, num_nodes, 8)), np.full((num_nodes, num_nodes), 999.0)
    np.fill_diagonal(paths, 0)
    for bond in mol.GetBonds():
        row = one_hot(bond.GetBondTypeAsDouble(), [1.0, 1.5, 2.0, 3.0])
        row += [bond.GetIsAromatic(), bond.GetIsConjugated(), bond.IsInRing()]
        i, j = 1 + bond.GetBeginAtomIdx(), 1 + bond.GetEndAtomIdx()
        bonds[i, j, 1:] = bonds[j, i, 1:] = row
        paths[i, j] = paths[j, i] = 1
    for k in range(num_nodes):
        paths = np.minimum(paths, paths[:, k, None] + paths[None, k])
    orders = np.zeros((num_nodes, num_nodes, 6))
    for order in range(4):
        orders[..., order] = paths == order
    orders[..., 4] = (paths >= 4) & (paths < 999)
    orders[..., 5] = paths >= 999
    distances = np.full((num_nodes, num_nodes), BEYOND)
    positions = mol.GetConformer().GetPositions()
    differences = positions[:, None] - positions[None]
    distances[1:, 1:] = np.sqrt((differences**2).sum(-1))
    radial = compute_radial(distances, config)
    return Features(nodes, np.concatenate([bonds, orders, radial], axis=-1), distances)


def compute_radial(distances: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """f_n = (1/x + a x^(p-1) + b x^p + c x^(p+1)) sin(n pi x) below the cutoff."""
    power = config["envelope_exponent"] + 1
    a, b, c = -(power + 1) * (power + 2) / 2, power * (power + 2), -power * (power + 1) / 2
    x = (distances + 1e-6) / config["envelope_cutoff"]
    envelope = np.where(
        x < 1, 1 / x + a * x ** (power - 1) + b * x**power + c * x ** (power + 1), 0
    )
    # the frequencies are float32 in their code, whatever the rest is
    frequencies = (math.pi * torch.arange(1, config["envelope_num_radial"] + 1)).double().numpy()
    return envelope[..., None] * np.sin(frequencies * x[..., None])


def build_weights(config: dict[str, Any], *, seed: int) -> dict[str, torch.Tensor]:
    """Random weights under the authors' names."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in iterate_shapes(config):
        scale = 1 / math.sqrt(shape[-1]) if len(shape) == 2 else 0.3
        values = scale * torch.randn(shape, generator=generator)
        weights[name] = values + 1 if name.endswith("norm.weight") else values
    return weights


def iterate_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of every weight of the authors' network."""
    width, num_heads = config["d_model"], config["encoder_n_attn_heads"]
    head_size, hidden = width // num_heads, config["ffn_d_hidden"] or width
    yield from linear("src_embed.lut", config["d_atom"], width)
    for layer in range(config["encoder_n_layers"]):
        prefix = f"encoder.layers.{layer}"
        for name in ("linear_layers.0", "linear_layers.1", "linear_layers.2", "output_linear"):
            yield from linear(f"{prefix}.self_attn.{name}", width, width)
        attention = f"{prefix}.self_attn.attention"
        yield f"{attention}.relative_u", (1, num_heads, 1, head_size)
        yield f"{attention}.relative_v", (1, num_heads, 1, head_size, 1)
        for name in ("relative_K", "relative_V"):
            yield from linear(f"{attention}.{name}.nn.0", config["d_edge"], head_size)
            yield from linear(f"{attention}.{name}.nn.3", head_size, width)
        num_linears = config["ffn_n_layers"]
        sizes = [width, *[hidden] * (num_linears - 1), width]
        for number in range(num_linears):
            name = f"{prefix}.feed_forward.linears.{number}"
            yield from linear(name, sizes[number], sizes[number + 1])
        if config["ffn_activation"] == "PReLU":
            yield f"{prefix}.feed_forward.act_func.weight", (1,)
        for number in range(2):
            yield from norm(f"{prefix}.sublayer.{number}.norm", width)
    yield from norm("encoder.norm", width)
    if config["generator_aggregation"] == "grover":
        yield "generator.att_net.0.weight", (128, width)
        yield "generator.att_net.2.weight", (4, 128)
        width *= 4
    width += config["generator_d_generated_features"]
    num_hidden = config["generator_n_layers"] - 1
    for number in range(num_hidden):
        # every hidden layer takes the pooled width: from three layers on their code needs 128
        yield from linear(f"generator.proj.{4 * number}", width, 128)
        yield from norm(f"generator.proj.{4 * number + 2}", 128)
    name = f"generator.proj.{4 * num_hidden}" if num_hidden else "generator.proj"
    yield from linear(name, 128 if num_hidden else width, config["generator_d_outputs"])


def linear(name: str, size: int, output_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (output_size, size)
    yield f"{name}.bias", (output_size,)


def norm(name: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


class AuthorsModel:
    """The network of one molecule, in numpy and float64."""

    def __init__(self, weights: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        self.weights = {name: tensor.double().numpy() for name, tensor in weights.items()}
        self.config = config

    def apply_linear(self, name: str, values: np.ndarray) -> np.ndarray:
        return values @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def apply_norm(self, name: str, values: np.ndarray) -> np.ndarray:
        centered = values - values.mean(-1, keepdims=True)
        scale = np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
        return centered / scale * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def activate(self, values: np.ndarray, *, prefix: str) -> np.ndarray:
        """The activation of a feed-forward network, by the authors' name of it."""
        name = self.config["ffn_activation"]
        negative = np.minimum(values, 0)
        if name == "tanh":
            return np.tanh(values)
        if name == "Linear":
            return values
        if name == "SELU":
            alpha, scale = 1.6732632423543772, 1.0507009873554805
            return scale * (np.maximum(values, 0) + alpha * np.expm1(negative))
        below = {"ReLU": 0 * negative, "LeakyReLU": 0.1 * negative, "ELU": np.expm1(negative)}
        if name == "PReLU":
            below[name] = self.weights[f"{prefix}.act_func.weight"] * negative
        return np.maximum(values, 0) + below[name]

    def feed_forward(self, prefix: str, values: np.ndarray) -> np.ndarray:
        num_linears = self.config["ffn_n_layers"]
        for number in range(max(1, num_linears - 1)):
            values = self.apply_linear(f"{prefix}.linears.{number}", values)
            values = self.activate(values, prefix=prefix)
        if num_linears == 1:
            return values
        return self.apply_linear(f"{prefix}.linears.{num_linears - 1}", values)

    def compute_pair_bias(self, prefix: str, pairs: np.ndarray) -> np.ndarray:
        """b_ij of every head, `(num_nodes, num_nodes, num_heads, head_size)`."""
        hidden = leaky_relu(self.apply_linear(f"{prefix}.nn.0", pairs))
        bias = self.apply_linear(f"{prefix}.nn.3", hidden)
        return bias.reshape(*pairs.shape[:2], self.config["encoder_n_attn_heads"], -1)

    def attend(self, prefix: str, states: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """The score of the authors' code: k_i, not k_j, meets b_ij and u, which is not scaled."""
        num_nodes, num_heads = len(states), self.config["encoder_n_attn_heads"]
        q, k, v = (
            self.apply_linear(f"{prefix}.linear_layers.{n}", states).reshape(
                num_nodes, num_heads, -1
            )
            for n in range(3)
        )
        key_bias = self.compute_pair_bias(f"{prefix}.attention.relative_K", pairs)
        value_bias = self.compute_pair_bias(f"{prefix}.attention.relative_V", pairs)
        u = self.weights[f"{prefix}.attention.relative_u"].reshape(num_heads, -1)
        w = self.weights[f"{prefix}.attention.relative_v"].reshape(num_heads, -1)
        outputs, root = np.zeros_like(q), math.sqrt(q.shape[-1])
        for head in range(num_heads):
            for i in range(num_nodes):
                scores = np.array(
                    [
                        q[i, head] @ k[j, head] / root
                        + (q[i, head] + k[i, head]) @ key_bias[i, j, head] / root
                        + u[head] @ k[i, head]
                        + w[head] @ key_bias[i, j, head]
                        for j in range(num_nodes)
                    ]
                )
                outputs[i, head] = softmax(scores) @ (v[:, head] + value_bias[i, :, head])
        return self.apply_linear(f"{prefix}.output_linear", outputs.reshape(num_nodes, -1))

    def encode(self, features: Features) -> np.ndarray:
        """The states of the nodes after the last norm."""
        states = self.apply_linear("src_embed.lut", features.nodes)
        for layer in range(self.config["encoder_n_layers"]):
            prefix = f"encoder.layers.{layer}"
            normed = self.apply_norm(f"{prefix}.sublayer.0.norm", states)
            states = states + self.attend(f"{prefix}.self_attn", normed, features.pairs)
            normed = self.apply_norm(f"{prefix}.sublayer.1.norm", states)
            states = states + self.feed_forward(f"{prefix}.feed_forward", normed)
        return self.apply_norm("encoder.norm", states)

    def predict(self, encoded: np.ndarray, descriptors: np.ndarray) -> np.ndarray:
        """Pooling and head: outputs of the molecule, or of every node if it is contextual."""
        pooled = encoded
        if self.config["generator_aggregation"] == "mean":
            pooled = encoded.mean(0)
        elif self.config["generator_aggregation"] == "grover":
            hidden = np.tanh(encoded @ self.weights["generator.att_net.0.weight"].T)
            scores = hidden @ self.weights["generator.att_net.2.weight"].T
            pooled = np.concatenate([softmax(scores[:, n]) @ encoded for n in range(4)])
        if len(descriptors):
            pooled = np.concatenate([pooled, descriptors])
        num_hidden = self.config["generator_n_layers"] - 1
        for number in range(num_hidden):
            hidden = leaky_relu(self.apply_linear(f"generator.proj.{4 * number}", pooled))
            pooled = self.apply_norm(f"generator.proj.{4 * number + 2}", hidden)
        name = f"generator.proj.{4 * num_hidden}" if num_hidden else "generator.proj"
        return self.apply_linear(name, pooled)


def leaky_relu(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0) + 0.1 * np.minimum(values, 0)


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def save_authors_files(folder: Path, options: dict[str, Any], *, seed: int) -> dict[str, Any]:
    """Write `weights.safetensors` and `config.json` as the authors would; return the fields."""
    config = {**CONFIG, **options}
    save_file(build_weights(config, seed=seed), folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return config
