import pytest
from rdkit import Chem

from rmat_hf.model.molecule_features_rmat import MoleculeError, describe_molecule, parse_molecule
from rmat_hf.model.molecule_limits_rmat import MAX_WRITTEN_ATOMS, is_densely_bonded, is_tractable


def build_cluster(num_atoms: int) -> Chem.Mol:
    """Uranium atoms, each bonded to all others: no valence stands against it."""
    mol = Chem.RWMol()
    for _ in range(num_atoms):
        mol.AddAtom(Chem.Atom("U"))
    for end in range(num_atoms):
        for begin in range(end):
            mol.AddBond(begin, end, Chem.BondType.SINGLE)
    return mol.GetMol()


def test_real_cages_are_not_densely_bonded() -> None:
    # the closo-borate B12, an icosahedron, has the most bonds per atom of what chemists draw
    icosahedron = Chem.RWMol()
    for _ in range(12):
        icosahedron.AddAtom(Chem.Atom("B"))
    for i in range(5):
        above, below = 1 + i, 6 + i
        for pair in (
            *((0, above), (above, 1 + (i + 1) % 5), (above, below)),
            *((above, 6 + (i + 1) % 5), (below, 6 + (i + 1) % 5), (below, 11)),
        ):
            icosahedron.AddBond(*pair, Chem.BondType.SINGLE)
    assert icosahedron.GetNumBonds() == 30
    assert is_tractable(icosahedron)
    assert is_tractable(build_cluster(16))


def test_a_cluster_that_rdkit_cannot_find_the_rings_of_is_refused_at_once() -> None:
    cluster = build_cluster(120)  # RDKit takes minutes for it
    assert is_densely_bonded(cluster)
    smiles = Chem.MolToSmiles(build_cluster(25), canonical=False)
    for molecule in (cluster, smiles):
        with pytest.raises(MoleculeError, match=r"bonds between \d+ atoms are more than RDKit can"):
            parse_molecule(molecule, max_atoms=256)


def test_a_chain_that_would_end_the_process_is_not_written() -> None:
    chain = Chem.MolFromSmiles("C" * 100_000, sanitize=False)
    assert chain.GetNumAtoms() > MAX_WRITTEN_ATOMS
    assert not is_tractable(chain)
    assert describe_molecule(chain) == "an RDKit molecule of 100000 atoms without a SMILES"
    with pytest.raises(MoleculeError, match="100000 heavy atoms are more than max_atoms=256"):
        parse_molecule(chain, max_atoms=256)
