"""Geometries are real, reproducible, independent of the atom order, and fail loudly."""

import random
import time
from typing import Any, get_args

import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError
from rdkit import Chem
from rdkit.Chem import AllChem
from rdkit.Geometry import Point3D

from rmat_hf.model import geometry_rmat
from rmat_hf.model.configuration_rmat import BEYOND_CUTOFF
from rmat_hf.model.features_rmat import (
    ATOM_FEATURES,
    RMatParsedMolecule,
    compute_bonds,
    parse_molecule,
)
from rmat_hf.model.geometry_rmat import (
    EMBED_PARAMETERS,
    GEOMETRIES,
    ConformerError,
    ConformerFailure,
    ConformerMethod,
    Geometry,
    RMatGeometryOptions,
    build_canonical_mol,
    center_coordinates,
    compute_interatomic_distances,
    compute_squared_distances,
    find_given_conformer,
    find_or_generate_conformer,
    quantize_coordinates,
    quantize_distances,
    validate_coordinates,
)

# Acyclic, aromatic, fused, bridged, chiral, E/Z, charged, salt, metal, symmetric, one atom.
VARIED_SMILES = [
    *("C", "[Na+]", "CCO", "CC(C)(C)c1ccccc1", "c1ccc2ccccc2c1", "CC(=O)Oc1ccccc1C(=O)O"),
    *("Cn1c(=O)c2c(ncn2C)n(C)c1=O", "CC(C)Cc1ccc([C@@H](C)C(=O)O)cc1", "C1CC2CCC1C2"),
    *("C1C2CC3CC1CC(C2)C3", r"F/C=C\Cl", "C/C=C/C(=O)N", "[O-][N+](=O)c1ccc(Br)cc1I"),
    *("[Na+].[O-]C(=O)c1ccccc1", "[NH4+].[Cl-]", "CC[Pt](N)(N)Cl", "[NH3]->[Fe]"),
    *("N[C@@H](CO)C(=O)N[C@@H](C)C(=O)O", "O[C@H]1[C@H](O)[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O"),
    *("[13CH3][C@](C)(N)O", "FC(F)(F)S(=O)(=O)N1CCOCC1"),
]
# Strained beyond what the torsion terms allow: embedding never succeeds.
IMPOSSIBLE = "C12=C3C4=C1C5=C2C3=C45"


def parse(smiles: str) -> RMatParsedMolecule:
    return RMatParsedMolecule(parse_molecule(smiles, max_atoms=512), smiles)


def measure(coordinates: np.ndarray) -> np.ndarray:
    """The distance between every two atoms, in Å."""
    return np.sqrt(compute_squared_distances(coordinates))


def compute_distances(molecule: str | RMatParsedMolecule, **options: Any) -> np.ndarray:
    parsed = parse(molecule) if isinstance(molecule, str) else molecule
    chosen = RMatGeometryOptions(**options)
    geometry, _ = GEOMETRIES[chosen.geometry](parsed, chosen)
    return expand(geometry, num_atoms=parsed.mol.GetNumAtoms())[0]


def expand(*geometries: np.ndarray, num_atoms: int) -> np.ndarray:
    """The distances of molecules of as many atoms, without the dummy node."""
    sizes = np.full(len(geometries), num_atoms)
    distances = compute_interatomic_distances(geometries, num_atoms=sizes, num_nodes=num_atoms + 1)
    assert distances.dtype == np.float32
    assert (distances[:, 0] == BEYOND_CUTOFF).all() and (distances[:, :, 0] == BEYOND_CUTOFF).all()
    return distances[:, 1:, 1:]


# Real geometry


@pytest.mark.parametrize("method", EMBED_PARAMETERS)
@pytest.mark.parametrize("hydrogens", [True, False])
def test_bond_lengths_of_ethanol_are_right(method: ConformerMethod, hydrogens: bool) -> None:
    distances = compute_distances("CCO", conformer_method=method, conformer_hydrogens=hydrogens)
    # in Å; ETKDG without a force field is no better
    assert distances[[0, 1], [1, 2]] == pytest.approx([1.52, 1.42], abs=0.1)
    assert 2.2 < distances[0, 2] < 2.6


def test_every_choice_has_its_function() -> None:
    assert list(EMBED_PARAMETERS) == list(get_args(ConformerMethod))
    assert list(GEOMETRIES) == list(get_args(Geometry))
    assert set(get_args(ConformerFailure)) - {"raise"} <= set(GEOMETRIES)


def test_stereo_and_seed_decide_the_conformer() -> None:
    cis, trans = compute_distances(r"F/C=C\F"), compute_distances("F/C=C/F")
    assert cis[0, 3] < 3.0 < trans[0, 3]
    first, again = (compute_distances("CCCCCCO", **seed) for seed in ({}, {"conformer_seed": 0}))
    np.testing.assert_array_equal(first, again)
    for seed in (1, 2, 2**31 - 3):
        assert np.abs(first - compute_distances("CCCCCCO", conformer_seed=seed)).max() > 1e-3


def test_bounds_are_near_the_conformer_and_2d_is_flat() -> None:
    mol = parse("CC(C)Cc1ccc([C@@H](C)C(=O)O)cc1")
    conformer, bounds = compute_distances(mol), compute_distances(mol, geometry="bounds")
    is_bonded = Chem.GetAdjacencyMatrix(mol.mol).astype(bool)
    np.testing.assert_allclose(bounds[is_bonded], conformer[is_bonded], atol=0.1)
    assert np.abs(bounds - conformer).mean() < 1.0
    coordinates, source = GEOMETRIES["2d"](mol, RMatGeometryOptions())
    assert source == "2d"
    assert not coordinates[:, 2].any()
    drawing = compute_distances(mol, geometry="2d")
    np.testing.assert_allclose(drawing[is_bonded], 1.5, atol=0.05)


@pytest.mark.parametrize("smiles", [*VARIED_SMILES, IMPOSSIBLE, "[U]", "C$C", "[O][O]"])
def test_graph_geometries_never_fail(smiles: str) -> None:
    for geometry in ("bounds", "2d"):
        assert np.isfinite(compute_distances(smiles, geometry=geometry)).all()


# The way a molecule is written


def list_rewritten_mols(parsed: RMatParsedMolecule, num_ways: int) -> list[RMatParsedMolecule]:
    """The molecule from random SMILES, half of them with shuffled atoms on top."""
    ways = []
    for seed in range(1, num_ways + 1):
        rewritten = parse(Chem.MolToRandomSmilesVect(parsed.mol, 1, randomSeed=seed)[0])
        if seed % 2:
            num_atoms = parsed.mol.GetNumAtoms()
            order = random.Random(seed).sample(range(num_atoms), num_atoms)
            rewritten = RMatParsedMolecule(Chem.RenumberAtoms(rewritten.mol, order))
        ways.append(rewritten)
    return ways


def list_bonds(mol: Chem.Mol) -> set[tuple[int, int, int]]:
    return {(*sorted(bond[:2]), bond[2]) for bond in compute_bonds(mol).tolist()}


def have_equal_distances(
    parsed: RMatParsedMolecule, distances: np.ndarray, other: RMatParsedMolecule, others: np.ndarray
) -> bool:
    """Whether some renumbering maps atoms, bonds and every distance onto the other molecule's."""
    pattern, target = Chem.Mol(parsed.mol), Chem.Mol(other.mol)
    codes, other_codes = (ATOM_FEATURES.compute_codes(mol) for mol in (pattern, target))
    bonds, other_bonds = list_bonds(pattern), list_bonds(target)
    for copy in (pattern, target):  # so that every symmetry is tried
        Chem.RemoveStereochemistry(copy)
        for atom in copy.GetAtoms():
            atom.SetIsotope(0)
    return any(
        np.array_equal(others[np.ix_(match, match)], distances)
        and np.array_equal(other_codes[list(match)], codes)
        and {(*sorted((match[i], match[j])), code) for i, j, code in bonds} == other_bonds
        for match in target.GetSubstructMatches(pattern, uniquify=False, maxMatches=100_000)
    )


@pytest.mark.parametrize("smiles", VARIED_SMILES)
@pytest.mark.parametrize("geometry", ["conformer", "bounds", "2d"])
def test_atom_order_does_not_change_the_distances(smiles: str, geometry: str) -> None:
    mol = parse(smiles)
    distances = compute_distances(mol, geometry=geometry)
    for other in list_rewritten_mols(mol, 6):
        others = compute_distances(other, geometry=geometry)
        assert have_equal_distances(mol, distances, other, others)


def test_molecule_without_a_readable_smiles_keeps_its_geometry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mol = parse("CC(=O)Nc1ccc(O)cc1")
    expected = compute_distances(mol, geometry="bounds")
    monkeypatch.setattr(Chem, "MolFromSmiles", lambda smiles: None)
    np.testing.assert_array_equal(compute_distances(mol, geometry="bounds"), expected)


# Failures


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
        compute_distances(smiles, max_conformer_attempts=1_000_000, conformer_time_limit_s=1)
    assert time.monotonic() - start < most_s
    assert caught.value.reason.endswith(
        "within the time limit of 1 s (geometry bounds needs no conformer)"
    )


@pytest.mark.parametrize("force_field", ["uff", "mmff"])
def test_time_of_the_force_field_is_bounded(
    monkeypatch: pytest.MonkeyPatch, force_field: str
) -> None:
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(geometry_rmat, "LARGE_MOLECULE", 10)
    monkeypatch.setattr(geometry_rmat, "LARGE_MOLECULE_ITERATIONS", 2)
    monkeypatch.setattr(geometry_rmat, "monotonic", lambda: next(clock))
    options = {"force_field": force_field, "conformer_time_limit_s": 1}
    with pytest.raises(ConformerError, match=f"{force_field} took more than the time limit of 1 s"):
        compute_distances("CC(=O)Nc1ccc(O)cc1", **options)


@pytest.mark.parametrize("smiles", ["CC(=O)Nc1ccc(O)cc1", "[NH4+].[O-]C(=O)C"])
@pytest.mark.parametrize("force_field", ["uff", "mmff"])
def test_relaxed_conformer_is_the_one_of_rdkit(smiles: str, force_field: str) -> None:
    mol = parse(Chem.CanonSmiles(smiles))
    work_mol = Chem.AddHs(mol.mol)
    parameters = EMBED_PARAMETERS["etkdg_v3"]()
    parameters.randomSeed = 1
    AllChem.EmbedMolecule(work_mol, parameters)
    getattr(AllChem, f"{force_field.upper()}OptimizeMolecule")(work_mol)
    expected = measure(work_mol.GetConformer().GetPositions()[: mol.mol.GetNumAtoms()])
    np.testing.assert_allclose(compute_distances(mol, force_field=force_field), expected, atol=2e-3)


@pytest.mark.parametrize("force_field", ["uff", "mmff"])
def test_force_field_without_parameters_is_a_failure_and_without_convergence_is_none(
    force_field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConformerError, match=f"{force_field} has no parameters"):
        compute_distances("C[Pt](N)Cl", force_field=force_field)
    monkeypatch.setattr(geometry_rmat, "MAX_FORCE_FIELD_ITERATIONS", 1)
    assert compute_distances("CC(=O)Nc1ccc(O)cc1", force_field=force_field).shape == (11, 11)


def test_rdkit_writes_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    for smiles in ("[Fe+2]", "CC[Pt](N)(N)Cl"):
        compute_distances(smiles, conformer_hydrogens=False)
        compute_distances(smiles, geometry="bounds")
    with pytest.raises(ConformerError):
        compute_distances("CC[Pt](N)(N)Cl", force_field="uff")
    assert capfd.readouterr() == ("", "")


def test_mmff_needs_hydrogens() -> None:
    with pytest.raises(StrictDataclassError, match="Keep the hydrogens in the conformer"):
        RMatGeometryOptions(force_field="mmff", conformer_hydrogens=False)


def test_input_molecule_does_not_change() -> None:
    parsed = parse("[13CH3][C@H](O)c1ccccc1")
    AllChem.EmbedMolecule(parsed.mol, randomSeed=5)
    before = parsed.mol.ToBinary()
    for geometry in get_args(Geometry):
        GEOMETRIES[geometry](parsed, RMatGeometryOptions())
    assert parsed.mol.ToBinary() == before


# Given conformers


def build_mol_with_positions(smiles: str, positions: list[tuple[float, float, float]]) -> Chem.Mol:
    mol = parse_molecule(smiles, max_atoms=512)
    conformer = Chem.Conformer(mol.GetNumAtoms())
    for idx, position in enumerate(positions):
        conformer.SetAtomPosition(idx, Point3D(*position))
    mol.AddConformer(conformer, assignId=True)
    return mol


def test_first_3d_conformer_is_found() -> None:
    mol = parse_molecule("CO", max_atoms=2)
    AllChem.Compute2DCoords(mol)
    given = RMatParsedMolecule(mol), RMatGeometryOptions()
    with pytest.raises(ConformerError, match="no 3D conformer"):
        find_given_conformer(*given)
    for length in (1.4, 1.5):
        other = build_mol_with_positions("CO", [(0, 0, 0), (0, 0, length)])
        mol.AddConformer(other.GetConformer(), assignId=True)
    coordinates, source = find_given_conformer(*given)
    assert source == "given"
    assert measure(coordinates)[0, 1] == pytest.approx(1.4)


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
    mol = build_mol_with_positions(smiles, positions)
    options = RMatGeometryOptions(on_conformer_failure="bounds")
    for function in (find_given_conformer, find_or_generate_conformer):
        with pytest.raises(ConformerError, match=reason):
            function(RMatParsedMolecule(mol), options)


def test_fragments_on_top_of_each_other_are_no_broken_conformer() -> None:
    # RDKit embeds every fragment around the origin.
    mol = build_mol_with_positions("[Na+].[Cl-]", [(0, 0, 0), (0, 0, 0)])
    validate_coordinates(mol, mol.GetConformer().GetPositions())


def test_isotopes_and_atom_maps_take_no_part() -> None:
    labeled = parse("[13CH3][CH2:2]O")
    (plain, _), (canonical, _) = (build_canonical_mol(it) for it in (parse("CCO"), labeled))
    assert canonical.ToBinary() == plain.ToBinary()
    assert labeled.mol.GetAtomWithIdx(0).GetIsotope() == 13


# Short form and distances


def generate_coordinates(num_atoms: int, size: float) -> np.ndarray:
    return np.random.default_rng(num_atoms).uniform(-size, size, size=(num_atoms, 3))


@pytest.mark.parametrize(("size", "dtype"), [(10.0, np.int16), (32.0, np.int16), (40, np.float32)])
def test_generated_coordinates_are_whole_steps_if_they_fit(size: float, dtype: type) -> None:
    coordinates = generate_coordinates(50, size) + 500
    quantized = quantize_coordinates(coordinates)
    assert quantized.dtype == dtype
    np.testing.assert_allclose(expand(quantized, num_atoms=50)[0], measure(coordinates), atol=2e-3)


def test_given_coordinates_lose_nothing_far_from_the_origin() -> None:
    coordinates = generate_coordinates(20, 5.0)
    centered = center_coordinates(coordinates + 1e4)
    assert centered.dtype == np.float32
    np.testing.assert_allclose(expand(centered, num_atoms=20)[0], measure(coordinates), atol=2e-6)


@pytest.mark.parametrize(("size", "dtype"), [(18.0, np.uint16), (60.0, np.float32)])
@pytest.mark.parametrize("num_atoms", [1, 2, 30])
def test_upper_triangle_gives_every_distance_back(num_atoms: int, size: float, dtype: type) -> None:
    coordinates = generate_coordinates(num_atoms, size)
    coordinates[0] = size
    coordinates[-1] = -size if num_atoms > 1 else size
    distances = np.round(measure(coordinates), 3)
    values = quantize_distances(distances)
    assert values.dtype == (dtype if num_atoms > 1 else np.uint16)
    expanded = expand(values, num_atoms=num_atoms)[0]
    np.testing.assert_array_equal(expanded, distances.astype(np.float32))
