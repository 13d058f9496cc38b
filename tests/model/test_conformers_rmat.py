"""Geometries are real, reproducible, independent of the atom order, and fail loudly."""

import csv
import random
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem
from rdkit.Geometry import Point3D

from rmat_hf.model import canonical_order_rmat, conformers_rmat
from rmat_hf.model.conformers_rmat import (
    EMBED_PARAMETERS,
    ConformerError,
    ConformerMethod,
    compute_2d_coordinates,
    compute_bounds_distances,
    extract_given_coordinates,
    generate_conformer,
    validate_conformer_options,
)
from rmat_hf.model.distances_rmat import compute_interatomic_distances
from rmat_hf.model.molecule_features_rmat import (
    compute_bond_types,
    compute_node_features,
    parse_molecule,
)

# Acyclic, aromatic, fused, bridged, chiral, E/Z, charged, salt, metal, symmetric, one atom.
VARIED_SMILES = [
    "C",
    "[Na+]",
    "CCO",
    "CC(C)(C)c1ccccc1",
    "c1ccc2ccccc2c1",
    "CC(=O)Oc1ccccc1C(=O)O",
    "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
    "CC(C)Cc1ccc([C@@H](C)C(=O)O)cc1",
    "C1CC2CCC1C2",
    "C1C2CC3CC1CC(C2)C3",
    r"F/C=C\Cl",
    "C/C=C/C(=O)N",
    "[O-][N+](=O)c1ccc(Br)cc1I",
    "[Na+].[O-]C(=O)c1ccccc1",
    "[NH4+].[Cl-]",
    "CC[Pt](N)(N)Cl",
    "[NH3]->[Fe]",
    "N[C@@H](CO)C(=O)N[C@@H](C)C(=O)O",
    "O[C@H]1[C@H](O)[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O",
    "[13CH3][C@](C)(N)O",
    "FC(F)(F)S(=O)(=O)N1CCOCC1",
]
# Strained beyond what the torsion terms allow: embedding never succeeds.
IMPOSSIBLE = "C12=C3C4=C1C5=C2C3=C45"
PEPTIDE = "NCC(=O)" + "NC(C)C(=O)" * 89 + "O"


def parse(smiles: str) -> Chem.Mol:
    return parse_molecule(smiles, max_atoms=512)


def compute_distances(smiles_or_mol: str | Chem.Mol, **options: object) -> np.ndarray:
    mol = parse(smiles_or_mol) if isinstance(smiles_or_mol, str) else smiles_or_mol
    return compute_interatomic_distances(generate_conformer(mol, **options))  # type: ignore[arg-type]


# Real geometry


@pytest.mark.parametrize("method", get_args(ConformerMethod))
@pytest.mark.parametrize("hydrogens", [True, False])
def test_bond_lengths_of_ethanol_are_right(method: ConformerMethod, hydrogens: bool) -> None:
    distances = compute_distances("CCO", method=method, hydrogens=hydrogens)
    tolerance = 0.1  # Å; ETKDG without a force field is no better
    assert distances[0, 1] == pytest.approx(1.52, abs=tolerance)
    assert distances[1, 2] == pytest.approx(1.42, abs=tolerance)
    assert 2.2 < distances[0, 2] < 2.6


def test_every_method_is_listed() -> None:
    assert list(EMBED_PARAMETERS) == list(get_args(ConformerMethod))


@pytest.mark.parametrize(("force_field", "carbonyl_length"), [("uff", 1.26), ("mmff", 1.23)])
def test_force_field_relaxes_the_conformer(force_field: str, carbonyl_length: float) -> None:
    mol = parse("CC(=O)Nc1ccc(O)cc1")
    plain, relaxed = (
        compute_distances(mol, force_field=choice) for choice in ("none", force_field)
    )
    assert 1e-3 < np.abs(plain - relaxed).max() < 2.0
    assert relaxed[1, 2] == pytest.approx(carbonyl_length, abs=0.01)  # Å


def test_stereo_decides_the_geometry() -> None:
    cis, trans = compute_distances(r"F/C=C\F"), compute_distances("F/C=C/F")
    assert cis[0, 3] < 3.0 < trans[0, 3]


def test_one_atom_has_one_position() -> None:
    for smiles in ("C", "[Na+]", "[Fe+2]", "[He]"):
        mol = parse(smiles)
        assert generate_conformer(mol).shape == (1, 3)
        assert compute_2d_coordinates(mol).shape == (1, 3)
        assert compute_bounds_distances(mol).tolist() == [[0.0]]


def test_seed_decides_the_conformer() -> None:
    mol = parse("CCCCCCO")
    first, again = generate_conformer(mol, seed=0), generate_conformer(mol, seed=0)
    np.testing.assert_array_equal(first, again)
    for seed in (1, 2, 2**31 - 3):
        assert np.abs(first - generate_conformer(mol, seed=seed)).max() > 1e-3


def test_bounds_are_near_the_conformer_and_2d_is_flat() -> None:
    mol = parse("CC(C)Cc1ccc([C@@H](C)C(=O)O)cc1")
    conformer, bounds = compute_distances(mol), compute_bounds_distances(mol)
    is_bonded = Chem.GetAdjacencyMatrix(mol).astype(bool)
    np.testing.assert_allclose(bounds[is_bonded], conformer[is_bonded], atol=0.1)
    assert np.abs(bounds - conformer).mean() < 1.0
    np.testing.assert_array_equal(bounds, bounds.T)
    coordinates = compute_2d_coordinates(mol)
    assert not coordinates[:, 2].any()
    drawing = compute_interatomic_distances(coordinates)
    np.testing.assert_allclose(drawing[is_bonded], 1.5, atol=0.05)


def test_bounds_of_other_fragments_are_far_away() -> None:
    bounds = compute_bounds_distances(parse("[Na+].[O-]C(=O)c1ccccc1"))
    assert (bounds[0, 1:] > 100).all()
    assert (bounds[1:, 1:] < 10).all()


@pytest.mark.parametrize("smiles", [*VARIED_SMILES, IMPOSSIBLE, "[U]", "C$C", "[O][O]"])
def test_graph_geometries_never_fail(smiles: str) -> None:
    mol = parse(smiles)
    shape = (mol.GetNumAtoms(), mol.GetNumAtoms())
    assert compute_bounds_distances(mol).shape == shape
    assert compute_interatomic_distances(compute_2d_coordinates(mol)).shape == shape


def test_peptide_of_450_atoms_has_bounds() -> None:
    bounds = compute_bounds_distances(parse(PEPTIDE))
    assert bounds.shape == (450, 450)
    assert np.isfinite(bounds).all()


# The way a molecule is written


def list_rewritten_mols(mol: Chem.Mol, num_ways: int) -> list[Chem.Mol]:
    """The molecule from random SMILES, half of them with shuffled atoms on top."""
    ways = []
    for seed in range(1, num_ways + 1):
        rewritten = parse(Chem.MolToRandomSmilesVect(mol, 1, randomSeed=seed)[0])
        if seed % 2:
            order = random.Random(seed).sample(range(mol.GetNumAtoms()), mol.GetNumAtoms())
            rewritten = Chem.RenumberAtoms(rewritten, order)
        ways.append(rewritten)
    return ways


def have_equal_distances(
    mol: Chem.Mol, distances: np.ndarray, other_mol: Chem.Mol, other_distances: np.ndarray
) -> bool:
    """Whether some renumbering maps atoms, bonds and every distance onto the other molecule's."""
    pattern, target = Chem.Mol(mol), Chem.Mol(other_mol)
    for copy in (pattern, target):  # so that every symmetry is tried
        Chem.RemoveStereochemistry(copy)
        for atom in copy.GetAtoms():
            atom.SetIsotope(0)
    matches = target.GetSubstructMatches(pattern, uniquify=False, maxMatches=100_000)
    for match in matches:
        nodes = np.array([0, *(idx + 1 for idx in match)])
        if (
            np.array_equal(other_distances[np.ix_(match, match)], distances)
            and np.array_equal(compute_node_features(other_mol)[nodes], compute_node_features(mol))
            and np.array_equal(
                compute_bond_types(other_mol)[np.ix_(nodes, nodes)], compute_bond_types(mol)
            )
        ):
            return True
    return False


@pytest.mark.parametrize("smiles", VARIED_SMILES)
def test_atom_order_does_not_change_the_distances(smiles: str) -> None:
    mol = parse(smiles)
    conformer, bounds = compute_distances(mol), compute_bounds_distances(mol)
    drawing = compute_interatomic_distances(compute_2d_coordinates(mol))
    for other in list_rewritten_mols(mol, 6):
        assert have_equal_distances(mol, conformer, other, compute_distances(other))
        assert have_equal_distances(mol, bounds, other, compute_bounds_distances(other))
        other_drawing = compute_interatomic_distances(compute_2d_coordinates(other))
        assert have_equal_distances(mol, drawing, other, other_drawing)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["freesolv", "esol", "bbbp", "estrogen-beta"])
def test_atom_order_does_not_change_the_bounds_of_benchmark_molecules(
    shared_dir: Path, name: str
) -> None:
    with open(shared_dir / "data" / "mat_benchmark" / f"{name}.csv", encoding="utf-8") as file:
        rows = [row["smiles"] for row in csv.DictReader(file)]
    for smiles in random.Random(0).sample(rows, 100):
        mol = parse(smiles)
        expected = np.sort(np.sort(compute_bounds_distances(mol), axis=1), axis=0)
        for other in list_rewritten_mols(mol, 30):
            found = np.sort(np.sort(compute_bounds_distances(other), axis=1), axis=0)
            np.testing.assert_array_equal(found, expected, err_msg=smiles)


def test_isotopes_and_atom_maps_do_not_change_the_distances() -> None:
    plain = compute_distances("CC(N)CO")
    np.testing.assert_array_equal(compute_distances("[13CH3]C(N)CO"), plain)
    np.testing.assert_array_equal(compute_distances("[CH3:2][CH:1](N)CO"), plain)


def test_molecule_without_a_readable_smiles_keeps_its_geometry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mol = parse("CC(=O)Nc1ccc(O)cc1")
    expected = compute_bounds_distances(mol)
    monkeypatch.setattr(canonical_order_rmat.Chem, "MolFromSmiles", lambda smiles: None)
    np.testing.assert_allclose(compute_bounds_distances(mol), expected, atol=1e-9)
    coordinates = generate_conformer(mol)
    assert compute_interatomic_distances(coordinates)[0, 1] == pytest.approx(1.5, abs=0.1)


# Failures


def test_impossible_molecule_is_a_failure() -> None:
    with pytest.raises(ConformerError) as caught:
        generate_conformer(parse(IMPOSSIBLE), max_attempts=20)
    assert caught.value.reason == (
        "no conformer with etkdg_v3 in 20 attempts (most frequent failure: etk minimization)"
    )


def test_attempts_are_bounded() -> None:
    long_chain = parse("C" * 80)  # starting coordinates nearly never fit
    with pytest.raises(ConformerError, match=r"in 2 attempts \(most frequent failure: initial"):
        generate_conformer(long_chain, max_attempts=2)


def test_time_is_bounded() -> None:
    with pytest.raises(ConformerError, match="within the time limit of 1 s"):
        generate_conformer(parse("C" * 200), max_attempts=1_000_000, time_limit_s=1)


HELICENE = "c1ccc2c(c1)ccc1c2c2c(cc1)ccc1c2c2c(cc1)ccc1c2c2ccccc2cc1"
NATURAL_PEPTIDE = Chem.MolToSmiles(Chem.MolFromSequence("ACDEFGHIKLMNPQRSTVWY" * 3))


@pytest.mark.parametrize(
    ("smiles", "most_s"),
    [
        pytest.param(HELICENE, 4.0, id="helicene"),
        # RDKit looks at the clock between attempts, and prepares the first one for seconds
        pytest.param(NATURAL_PEPTIDE, 60.0, id="peptide of 502 atoms", marks=pytest.mark.slow),
    ],
)
def test_nasty_molecule_ends_near_its_limit_with_the_way_out(smiles: str, most_s: float) -> None:
    start = time.monotonic()
    with pytest.raises(ConformerError) as caught:
        generate_conformer(parse(smiles), max_attempts=1_000_000, time_limit_s=1)
    assert time.monotonic() - start < most_s
    assert caught.value.reason.endswith(
        "within the time limit of 1 s (geometry bounds needs no conformer)"
    )


@pytest.mark.parametrize("force_field", ["uff", "mmff"])
def test_time_of_the_force_field_is_bounded(
    monkeypatch: pytest.MonkeyPatch, force_field: str
) -> None:
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(conformers_rmat, "LARGE_MOLECULE", 10)
    monkeypatch.setattr(conformers_rmat, "LARGE_MOLECULE_ITERATIONS", 2)
    monkeypatch.setattr(conformers_rmat, "monotonic", lambda: next(clock))
    with pytest.raises(ConformerError, match=f"{force_field} took more than the time limit of 1 s"):
        compute_distances("CC(=O)Nc1ccc(O)cc1", force_field=force_field, time_limit_s=1)


@pytest.mark.parametrize("smiles", ["CC(=O)Nc1ccc(O)cc1", "[NH4+].[O-]C(=O)C"])
def test_relaxed_conformer_is_the_one_of_rdkit(smiles: str) -> None:
    mol = parse(Chem.CanonSmiles(smiles))
    work_mol = Chem.AddHs(mol)
    parameters = EMBED_PARAMETERS["etkdg_v3"]()
    parameters.randomSeed = 1
    AllChem.EmbedMolecule(work_mol, parameters)
    for force_field, optimize in (
        ("uff", AllChem.UFFOptimizeMolecule),
        ("mmff", AllChem.MMFFOptimizeMolecule),
    ):
        expected = Chem.Mol(work_mol)
        optimize(expected)
        np.testing.assert_allclose(
            generate_conformer(mol, force_field=force_field),  # type: ignore[arg-type]
            expected.GetConformer().GetPositions()[: mol.GetNumAtoms()],
            atol=1e-3,
        )


@pytest.mark.parametrize("force_field", ["uff", "mmff"])
def test_force_field_without_parameters_is_a_failure(force_field: str) -> None:
    with pytest.raises(ConformerError, match=f"{force_field} has no parameters"):
        compute_distances("C[Pt](N)Cl", force_field=force_field)


def test_relaxation_that_does_not_converge_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformers_rmat, "MAX_FORCE_FIELD_ITERATIONS", 1)
    assert compute_distances("CC(=O)Nc1ccc(O)cc1", force_field="uff").shape == (11, 11)


def test_rdkit_writes_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    for smiles in ("[Fe+2]", "CC[Pt](N)(N)Cl"):
        generate_conformer(parse(smiles), hydrogens=False)
        compute_bounds_distances(parse(smiles))
    with pytest.raises(ConformerError):
        compute_distances("CC[Pt](N)(N)Cl", force_field="uff")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("method", "etkdg", r"conformer method is 'etkdg'. Choose one of \['etkdg_v3'"),
        ("force_field", "amber", r"force field is 'amber'. Choose one of \['none', 'uff', 'mmff'"),
        ("hydrogens", "yes", r"hydrogens is 'yes'. Choose one of \[True, False\]"),
        ("seed", -1, "conformer seed is -1. Choose an integer from 0"),
        ("seed", 2**31 - 2, "conformer seed is 2147483646"),
        ("seed", 1.0, "conformer seed is 1.0"),
        ("max_attempts", 0, "conformer attempts is 0. Choose an integer from 1"),
        ("max_attempts", True, "conformer attempts is True"),
        ("time_limit_s", 0.5, "time limit in seconds is 0.5"),
    ],
)
def test_wrong_option_is_refused(option: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_distances("CCO", **{option: value})


def test_mmff_needs_hydrogens() -> None:
    options = {"method": "kdg", "seed": 0, "max_attempts": 1, "time_limit_s": 1}
    with pytest.raises(ValueError, match="Keep the hydrogens in the conformer or choose 'uff'"):
        validate_conformer_options(hydrogens=False, force_field="mmff", **options)  # type: ignore[arg-type]
    validate_conformer_options(hydrogens=False, force_field="uff", **options)  # type: ignore[arg-type]


def test_input_molecule_does_not_change() -> None:
    mol = parse("[13CH3][C@H](O)c1ccccc1")
    AllChem.EmbedMolecule(mol, randomSeed=5)
    before = mol.ToBinary()
    generate_conformer(mol)
    compute_bounds_distances(mol)
    compute_2d_coordinates(mol)
    assert mol.ToBinary() == before


# Given conformers


def build_mol_with_positions(smiles: str, positions: list[tuple[float, float, float]]) -> Chem.Mol:
    mol = parse(smiles)
    conformer = Chem.Conformer(mol.GetNumAtoms())
    for idx, position in enumerate(positions):
        conformer.SetAtomPosition(idx, Point3D(*position))
    mol.AddConformer(conformer, assignId=True)
    return mol


def test_first_3d_conformer_is_extracted() -> None:
    mol = parse("CO")
    AllChem.Compute2DCoords(mol)
    assert extract_given_coordinates(mol) is None
    for length in (1.4, 1.5):
        given = build_mol_with_positions("CO", [(0, 0, 0), (0, 0, length)])
        mol.AddConformer(given.GetConformer(), assignId=True)
    coordinates = extract_given_coordinates(mol)
    assert coordinates is not None
    assert coordinates.tolist() == [[0, 0, 0], [0, 0, 1.4]]


@pytest.mark.parametrize(
    ("smiles", "positions", "reason"),
    [
        ("CO", [(0, 0, 0), (0, 0, float("nan"))], "not finite"),
        ("CO", [(0, 0, 0), (0, 0, float("inf"))], "not finite"),
        ("CCO", [(0, 0, 0), (1, 0, 0), (0, 0, 0)], "atoms 0 and 2 of the conformer coincide"),
        ("CO", [], "atoms 0 and 1 of the conformer coincide"),
    ],
)
def test_broken_conformer_is_refused(
    smiles: str, positions: list[tuple[float, float, float]], reason: str
) -> None:
    with pytest.raises(ConformerError) as caught:
        extract_given_coordinates(build_mol_with_positions(smiles, positions))
    assert reason in caught.value.reason


def test_fragments_on_top_of_each_other_are_no_broken_conformer() -> None:
    # RDKit embeds every fragment around the origin.
    mol = build_mol_with_positions("[Na+].[Cl-]", [(0, 0, 0), (0, 0, 0)])
    assert extract_given_coordinates(mol) is not None
