"""The features of a molecule agree with the 2021 reference, and every input has an outcome."""

import pickle
import re
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem, Descriptors

from rmat_hf.model.configuration_rmat import (
    DUMMY_COLUMN,
    MASK_COLUMN,
    NO_BOND_TYPE,
    UNREACHABLE_DISTANCE,
    RMatConfig,
)
from rmat_hf.model.features_rmat import (
    ATOM_FEATURES,
    MAX_WRITTEN_ATOMS,
    MoleculeError,
    RMatAtomFeature,
    RMatAtomFeatures,
    compute_molecule_descriptors,
    describe_molecule,
    is_tractable,
    list_molecule_descriptor_names,
    parse_canonical,
    parse_molecule,
)
from rmat_hf.model.processing_rmat import RMatProcessor

REFERENCE_FOLDERS = ["grover_pool", "mean_pool"]
MAX_ATOMS = 256
# 1 alanine more than 89 makes 450 heavy atoms.
PEPTIDE = "NCC(=O)" + "NC(C)C(=O)" * 89 + "O"

# First columns of the groups of one-hot columns.
NEIGHBORS, HYDROGENS, CHARGE, IN_RING, AROMATIC = 13, 19, 24, 35, 36


def parse(molecule: str | Chem.Mol | None) -> Chem.Mol:
    return parse_molecule(molecule, max_atoms=MAX_ATOMS)


def featurize(molecule: str | Chem.Mol, name: str) -> np.ndarray:
    """One of the features of a molecule."""
    return RMatProcessor(geometry="2d", max_atoms=MAX_ATOMS).featurize(molecule)[0][name]


def decode_bond_types(bond_types: np.ndarray) -> np.ndarray:
    """The reference's 8 bond planes: mask flag, order (4), aromatic, conjugated, in ring."""
    is_bonded = bond_types != NO_BOND_TYPE
    codes = bond_types.astype(int) - 1
    planes = [np.zeros_like(is_bonded)]
    planes += [is_bonded & (codes // 8 == order) for order in range(4)]
    planes += [is_bonded & (codes // bit % 2 == 1) for bit in (4, 2, 1)]
    return np.stack(planes)


def decode_topological_distances(distances: np.ndarray) -> np.ndarray:
    """The reference's 6 planes: 0, 1, 2, 3, at least 4, unreachable."""
    orders = np.where(distances == UNREACHABLE_DISTANCE, 5, np.minimum(distances, 4))
    return np.stack([orders == order for order in range(6)])


# Agreement with the reference implementation


@pytest.mark.parametrize("folder", REFERENCE_FOLDERS)
def test_features_equal_those_of_the_reference(golden_dir: Path, folder: str) -> None:
    path = golden_dir / "reference" / folder
    golden = np.load(path / "reference_arrays.npz")
    mols = list(Chem.SDMolSupplier(str(path / "molecules.sdf")))
    assert len(mols) == len(golden["output"]) == 10
    for row, mol in enumerate(mols):
        features, source = RMatProcessor(geometry="given").featurize(mol)
        nodes = slice(len(features["node_features"]))
        assert golden["atom_mask"][row].sum() == nodes.stop
        assert source == "given"
        decoded = {
            "node_features": features["node_features"],
            "bond_features": decode_bond_types(features["bond_types"]),
            "neighbourhood": decode_topological_distances(features["topological_distances"]),
        }
        for name, values in decoded.items():
            cells = (nodes,) if name == "node_features" else (slice(None), nodes, nodes)
            np.testing.assert_array_equal(values, golden[name][(row, *cells)], err_msg=name)
        np.testing.assert_allclose(
            features["interatomic_distances"],
            golden["distance_matrix"][row, nodes, nodes],
            rtol=1e-6,
            atol=1e-6,
        )


# The arrays


def test_node_features_start_with_the_dummy_node() -> None:
    node_features = featurize("CCO", "node_features")
    assert node_features.dtype == np.uint8
    assert RMatConfig().num_node_features == ATOM_FEATURES.num_node_features == 37
    assert node_features.shape == (4, ATOM_FEATURES.num_node_features)
    assert node_features[0].nonzero()[0].tolist() == [DUMMY_COLUMN]
    assert not node_features[1:, [MASK_COLUMN, DUMMY_COLUMN]].any()


@pytest.mark.parametrize(
    ("smiles", "atom", "column"),
    [
        ("F[U](F)(F)(F)(F)F", 2, NEIGHBORS - 1),  # no element of the list
        ("F[U](F)(F)(F)(F)F", 2, HYDROGENS - 1),  # six neighbors
        ("[Pt-7]", 1, IN_RING - 1),  # charge -7
        ("[UH6]", 1, CHARGE - 1),  # six hydrogens
    ],
)
def test_values_outside_their_list_take_the_last_class(smiles: str, atom: int, column: int) -> None:
    assert featurize(smiles, "node_features")[atom, column] == 1


def test_hydrogens_charges_rings_and_aromaticity_have_their_columns() -> None:
    methane = featurize("C", "node_features")[1]
    assert methane.nonzero()[0].tolist() == [3, NEIGHBORS, HYDROGENS + 4, CHARGE + 5]
    pyridinium = featurize("[nH+]1ccccc1", "node_features")[1]
    assert pyridinium.nonzero()[0].tolist() == [
        4, NEIGHBORS + 2, HYDROGENS + 1, CHARGE + 6, IN_RING, AROMATIC,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("smiles", "code"),
    [
        *(("CC", 1), ("C1CC1", 2), ("C=C", 17), ("C=CC=C", 1 + 16 + 2), ("C#C", 25)),
        *(("c1ccccc1", 1 + 8 + 4 + 2 + 1), ("C$C", 25), ("[NH3]->[Fe]", 25)),
    ],
)
def test_bond_type_code(smiles: str, code: int) -> None:
    bond_types = featurize(smiles, "bond_types")
    assert bond_types.dtype == np.uint8
    assert bond_types[1, 2] == bond_types[2, 1] == code


# Molecules that are refused


@pytest.mark.parametrize(
    ("molecule", "reason"),
    [
        *(("", "the SMILES is empty"), ("  \t", "the SMILES is empty")),
        *((None, "missing: no SMILES or Chem.Mol but None"), (float("nan"), "but nan")),
        *((7, "but 7"), (b"CCO", "but b'CCO'")),
        *(("CCO ethanol", "text after the SMILES"), ("CCO\tethanol", "text after the SMILES")),
        *(("structure restricted", "words, and no SMILES"), ("C1CC bad", "text after the SMILES")),
        *(("C1CC", "unclosed ring for input: 'C1CC'"), ("CC(", "syntax error while parsing")),
        ("C(C)(C)(C)(C)C", "Explicit valence for atom # 0 C, 5, is greater than permitted"),
        *(("c1cccc1", "Can't kekulize mol"), ("CCO |bad|", "RDKit cannot parse the SMILES")),
        *(("*CC", "dummy atom (*)"), ("[#6]CC", "[#6] is a query atom (SMARTS)")),
        *(("[C,N]CC", "syntax error while parsing"), ("C~C", "query bond (SMARTS)")),
        *((smiles, "no heavy atoms") for smiles in ("[H][H]", "[H+]", "[2H]")),
        ("C" * 257, "257 heavy atoms are more than max_atoms=256; a larger max_atoms accepts it"),
        (PEPTIDE, "450 heavy atoms are more than max_atoms=256"),
    ],
)
def test_molecule_is_refused_with_a_reason(molecule: str, reason: str) -> None:
    with pytest.raises(MoleculeError) as caught:
        parse(molecule)
    assert reason in caught.value.reason == str(caught.value)
    assert "\n" not in caught.value.reason


@pytest.mark.parametrize(
    ("mol", "reason"),
    [
        (Chem.Mol(), "no heavy atoms"),
        (Chem.AddHs(Chem.MolFromSmiles("[H][H]")), "no heavy atoms"),
        (Chem.MolFromSmarts("[C,N]c1ccccc1"), "atom 0 is a query atom"),
        (Chem.MolFromSmarts("CC"), "is a query atom"),
        (Chem.MolFromSmiles("*CC"), "atom 0 is a dummy atom"),
        (Chem.MolFromSmiles("CN(C)(C)C", sanitize=False), "Explicit valence"),
        (Chem.MolFromSmiles("c1cccc1", sanitize=False), "Can't kekulize"),
        (Chem.MolFromSmiles("C" * 257), "more than max_atoms=256"),
    ],
)
def test_rdkit_molecule_is_refused_with_a_reason(mol: Chem.Mol, reason: str) -> None:
    with pytest.raises(MoleculeError, match=re.escape(reason)):
        parse(mol)


def test_rdkit_writes_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    for smiles in ("C1CC", "c1cccc1", "C(C)(C)(C)(C)C", "[H+].[Cl-]", "F[H-]F", "CC |x|"):
        with suppress(MoleculeError):
            parse(smiles)
    assert capfd.readouterr() == ("", "")


# Molecules that are accepted


@pytest.mark.parametrize(
    ("smiles", "heavy_atoms_only"),
    [
        ("[H]C([H])([H])[H]", "C"),
        ("[2H]C([3H])O[2H]", "CO"),
        ("[H-].[Na+]", "[Na+]"),
        ("[H]/C(C)=C/C", "C/C=C\\C"),
        (" CCO\n", "CCO"),
        ("CCO |$a;b;c$|", "CCO"),
        ("C[C@H](F)O |o1:1|", "C[C@H](F)O"),
        *((smiles, smiles) for smiles in ("[Na+].[O-]C(=O)c1ccccc1", "[CH3]", "C[CH]C", "[O][O]")),
        *((smiles, smiles) for smiles in ("[Fe+2]", "C[Hg]C", "N->[Pt](<-N)(Cl)Cl", "[He]", "C$C")),
    ],
)
def test_molecule_is_accepted(smiles: str, heavy_atoms_only: str) -> None:
    mol = parse(smiles)
    assert all(atom.GetAtomicNum() != 1 for atom in mol.GetAtoms())
    assert Chem.MolToSmiles(mol) == Chem.CanonSmiles(heavy_atoms_only)
    assert len(featurize(mol, "node_features")) == mol.GetNumAtoms() + 1


@pytest.mark.parametrize(
    ("smiles", "same_features"),
    [
        *(("[13CH3][14CH2]O", "CCO"), ("[2H]C([2H])([2H])O", "CO"), ("[CH3:7][OH:3]", "CO")),
        *(("[H]OC", "OC"), ("C1=CC=CC=C1", "c1ccccc1"), ("F/C=C/F", "FC=CF")),
        ("C[C@H](N)O", "CC(N)O"),
    ],
)
def test_isotopes_maps_stereo_and_ways_of_writing_have_no_feature(
    smiles: str, same_features: str
) -> None:
    for name in ("node_features", "bond_types", "topological_distances"):
        for molecule in (smiles, Chem.MolFromSmiles(smiles, sanitize=False)):
            np.testing.assert_array_equal(featurize(molecule, name), featurize(same_features, name))


def test_explicit_hydrogens_change_nothing_and_the_conformer_and_the_input_stay() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("[2H]OC(=O)c1ccccc1"))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    before = mol.ToBinary()
    parsed = parse(mol)
    compute_molecule_descriptors(parsed, list_molecule_descriptor_names())
    assert mol.ToBinary() == before
    reference = Chem.MolFromSmiles("OC(=O)c1ccccc1")
    np.testing.assert_array_equal(
        featurize(parsed, "node_features"), featurize(reference, "node_features")
    )
    is_heavy = [atom.GetAtomicNum() > 1 for atom in mol.GetAtoms()]
    np.testing.assert_array_equal(
        parsed.GetConformer().GetPositions(), mol.GetConformer().GetPositions()[is_heavy]
    )


# Descriptors


def test_descriptors_equal_rdkits() -> None:
    mol, names = parse("CC(=O)Oc1ccccc1C(=O)O"), list_molecule_descriptor_names()
    values = compute_molecule_descriptors(mol, names)
    assert values.dtype == np.float32
    expected = Descriptors.CalcMolDescriptors(mol)
    assert list(expected) == names
    np.testing.assert_allclose(values, [*expected.values()], rtol=1e-6)


def test_descriptor_that_is_undefined_too_large_or_raises_is_nan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No Gasteiger parameters for uranium; Ipc of a long chain is beyond float32.
    assert np.isnan(compute_molecule_descriptors(parse("F[U]"), ["MaxPartialCharge"])).all()
    assert np.isnan(compute_molecule_descriptors(parse("C" * 200), ["Ipc"])).all()
    functions = [("MolWt", lambda mol: 1 / 0), ("TPSA", lambda mol: 1.0)]
    monkeypatch.setattr(Descriptors, "descList", functions)
    values = compute_molecule_descriptors(parse("CCO"), ["MolWt", "TPSA"])
    np.testing.assert_array_equal(values, [np.nan, 1.0])


# Hostile molecules


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        # RDKit reads the first as CC, the second and third as CCO
        ("CC\u041e", "the SMILES has the character U+041E"),
        ("CCO\0", "the SMILES has the character U+0000"),
        ("\ufeffCCO", "the SMILES has the character U+FEFF"),
        ("C\x1b[31mC", "the SMILES has the character U+001B"),
        ("C(" * 300_000, "600000 characters are too long a SMILES: max_atoms=256 allows 25600"),
        ("C1" + "C" * 20_000 + "C1", "20002 heavy atoms are more than max_atoms=256"),
        ("*" * 200, "atom 0 is a dummy atom (*)"),
        ("[CH999999999]", "Pre-condition Violation"),
    ],
)
def test_hostile_smiles_are_refused_in_a_short_line(smiles: str, reason: str) -> None:
    with pytest.raises(MoleculeError) as caught:
        parse_molecule(smiles, max_atoms=256)
    assert caught.value.reason.startswith(reason)
    assert len(caught.value.reason) < 400
    assert caught.value.reason.isprintable()


@pytest.mark.parametrize(
    "text", ["C1CC1" * 5_000, "c1ccccc1" * 3_000, "*1**1" * 5_000, "C=" * 12_000]
)
def test_a_huge_smiles_is_refused_before_rdkit_reads_it(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(MoleculeError, match="max_atoms=256"):
        parse_molecule(text, max_atoms=256)
    assert time.perf_counter() - start < 1.0  # RDKit alone takes 7 to 15 s for the first


@pytest.mark.parametrize(
    "smiles",
    [
        "C" * 256 + "[H][H]".join(["."] * 2) + "[2H][3H].[H+]",
        "[H]C([H])([H])" + "C([H])([2H])" * 60 + "[2H]",
        ".".join(["[2H][C@@]([2H])([3H])[13C:1]([H])([H])[OH]"] * 60),
        ".".join(["[Hg+2]", "[He]", "[Ho]", "[Cl-]", "ClBr", "[nH]1cccc1", "C%12CC%12"] * 12),
        "[13CH3:1]" + "C(=O)N%(10)CC%(10)" * 40 + "[O-].[Na+]",
    ],
)
def test_atoms_of_a_long_text_are_counted_as_rdkit_counts_them(smiles: str) -> None:
    num_heavy = Chem.MolFromSmiles(smiles).GetNumHeavyAtoms()
    assert len(smiles) > 256
    assert parse_molecule(smiles, max_atoms=num_heavy).GetNumAtoms() == num_heavy
    with pytest.raises(MoleculeError, match=f"^{num_heavy} heavy atoms are more than"):
        parse_molecule(smiles, max_atoms=num_heavy - 1)


def build_cluster(num_atoms: int) -> Chem.Mol:
    """Uranium atoms, each bonded to all others: no valence stands against it."""
    mol = Chem.RWMol()
    for _ in range(num_atoms):
        mol.AddAtom(Chem.Atom("U"))
    for end in range(num_atoms):
        for begin in range(end):
            mol.AddBond(begin, end, Chem.BondType.SINGLE)
    return mol.GetMol()


def test_a_cluster_that_rdkit_cannot_find_the_rings_of_is_refused_at_once() -> None:
    cluster = build_cluster(120)  # RDKit takes minutes for it
    assert not is_tractable(cluster)
    assert is_tractable(build_cluster(16))
    smiles = Chem.MolToSmiles(build_cluster(25), canonical=False)
    for molecule in (cluster, smiles):
        with pytest.raises(MoleculeError, match=r"bonds between \d+ atoms are more than RDKit can"):
            parse_molecule(molecule, max_atoms=256)


def test_a_chain_that_would_end_the_process_is_not_written() -> None:
    chain = Chem.MolFromSmiles("C" * 100_000, sanitize=False)
    assert chain.GetNumAtoms() > MAX_WRITTEN_ATOMS
    assert not is_tractable(chain)
    assert describe_molecule(chain) == "an RDKit molecule of 100000 atoms"
    with pytest.raises(MoleculeError, match="100000 heavy atoms are more than max_atoms=256"):
        parse_molecule(chain, max_atoms=256)


def test_a_reader_hands_on_why_there_is_no_molecule() -> None:
    error = pickle.loads(pickle.dumps(MoleculeError("the counts line is wrong")))
    with pytest.raises(MoleculeError, match="the counts line is wrong"):
        parse_canonical(error, max_atoms=256)
    batch = RMatProcessor(geometry="2d")(["C", error], errors="skip")
    assert batch.skipped_rows == {1: "the counts line is wrong"}


# One parse


@pytest.mark.parametrize(
    "smiles", ["CCO", "c1ccccc1", "C1C2CC3CC1CC(C2)C3", "[13CH3]O", "[Na+].[Cl-]"]
)
@pytest.mark.parametrize("geometry", ["conformer", "bounds", "2d"])
def test_every_way_of_writing_gives_the_features_of_the_canonical_smiles(
    smiles: str, geometry: str
) -> None:
    processor = RMatProcessor(geometry=geometry)
    canonical = Chem.CanonSmiles(smiles)
    expected, source = processor.featurize(canonical)
    ways = Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(smiles), 4, randomSeed=1)
    for text in [canonical, f" {canonical}", *ways]:
        parsed = parse_canonical(text, max_atoms=9 + 1)
        assert parsed.canonical_smiles == canonical
        features, other_source = processor.featurize(parsed)
        assert other_source == source
        for name, array in expected.items():
            np.testing.assert_array_equal(features[name], array)


def test_a_canonical_smiles_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, read = [], Chem.MolFromSmiles
    monkeypatch.setattr(Chem, "MolFromSmiles", lambda text: texts.append(text) or read(text))
    processor = RMatProcessor(geometry="bounds")
    processor.featurize(parse_canonical("CCO", max_atoms=9))
    assert texts == ["CCO"]
    processor.featurize(parse_canonical("OCC", max_atoms=9))
    assert texts == ["CCO", "OCC", "CCO"]


def test_a_molecule_without_a_readable_smiles_and_an_rdkit_molecule_keep_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = Chem.MolFromSmiles
    monkeypatch.setattr(Chem, "MolFromSmiles", lambda text: read(text) if text == "OCC" else None)
    for molecule, canonical in (("OCC", "CCO"), (read("OCC"), None)):
        parsed = parse_canonical(molecule, max_atoms=9)
        assert parsed.canonical_smiles == canonical
        assert [atom.GetSymbol() for atom in parsed.mol.GetAtoms()] == ["O", "C", "C"]


# Codes of atoms, and one feature more


@pytest.mark.parametrize(("num_more", "dtype"), [(0, "<u2"), (1, "<u4"), (3, "<u4"), (15, "<u8")])
def test_codes_never_wrap_and_give_every_feature_back(num_more: int, dtype: str) -> None:
    """One feature of five classes makes 72,600 kinds of atoms, more than 16 bits hold."""
    read = Chem.Atom.GetNumRadicalElectrons
    more = [RMatAtomFeature(f"radicals_{i}", (0, 1, 2, 3, None), read) for i in range(num_more)]
    table = RMatAtomFeatures([*ATOM_FEATURES.features.values(), *more])
    mol = parse("F[U](F)(F)(F)(F)F.C[CH]c1ccccc1.[CH3].[O].[Pt-7].[nH+]1ccccc1")
    codes = table.compute_codes(mol)
    assert codes.dtype == table.code_dtype == dtype
    columns = table.expand_codes(codes)
    assert columns.shape == (mol.GetNumAtoms(), table.num_node_features - 2)
    plain = ATOM_FEATURES.expand_codes(ATOM_FEATURES.compute_codes(mol))
    np.testing.assert_array_equal(columns[:, : plain.shape[1]], plain)
    radicals = [min(read(atom), 4) for atom in mol.GetAtoms()]
    for feature in more:
        place = table.columns[feature.name]
        one_hots = columns[:, place.start - 2 : place.stop - 2]
        np.testing.assert_array_equal(one_hots, np.eye(5)[radicals])
