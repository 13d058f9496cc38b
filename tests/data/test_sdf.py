import tracemalloc
from itertools import chain, count
from pathlib import Path

import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor

from rmat_hf.data import table_files
from rmat_hf.data.table_files import (
    SdfRecord,
    compute_record_smiles,
    iterate_lines,
    iterate_sdf_records,
    parse_mol_block,
)
from rmat_hf.model.features_rmat import MoleculeError

BLOCK = Chem.MolToMolBlock(Chem.MolFromSmiles("CCO"))


def read(content: str) -> list[SdfRecord]:
    return list(iterate_sdf_records(content.splitlines(keepends=True)))


def test_records_keep_order_titles_and_exact_property_text() -> None:
    content = (
        f"first{BLOCK}>  <id>  (1)\n007\n\n>  25 <melting point>\n 1.5 \n\n$$$$\n"
        f"second{BLOCK}$$$$\n"
    )
    records = read(content)
    assert [record.title for record in records] == ["first", "second"]
    assert [record.properties for record in records] == [
        {"id": "007", "melting point": " 1.5 "},
        {},
    ]


@pytest.mark.parametrize(("limit", "value"), [("RECORD_LINES", 20), ("LENGTH", 600)])
def test_record_that_is_too_long_is_named(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    record = f"{BLOCK}>  <y>\n1\n\n$$$$\n"
    assert len(record.splitlines()) < 20
    assert len(record) < 600
    monkeypatch.setattr(table_files, f"MAX_{limit}", value)
    assert len(read(record * 9)) == 9
    too_long = record.replace("1\n\n", "1\n" * 10 + "x" * 500 + "\n\n")
    with pytest.raises(ValueError, match=rf"^record 7 \(counted from 0\) has more than .*{value}"):
        read(record * 7 + too_long + record)


@pytest.mark.parametrize("line", [pytest.param("", marks=pytest.mark.slow), "x" * 1000])
def test_record_that_never_ends_does_not_fill_the_memory(line: str) -> None:
    endless = chain(BLOCK.splitlines(), (line + "\n" for _ in count()))  # new texts, as of a file
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"End it with a line \$\$\$\$, or drop it$"):
            list(iterate_sdf_records(endless))
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()


def test_same_records_as_rdkit(tmp_path: Path) -> None:
    path = tmp_path / "mols.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for i, smiles in enumerate(
            ["CCO", "C[N+](C)(C)C.[Cl-]", "C[C@H](F)Cl", "c1ccncc1", "[Na+]"]
        ):
            mol = Chem.MolFromSmiles(smiles)
            rdDepictor.Compute2DCoords(mol)
            mol.SetProp("label", f"{i}.50")
            writer.write(mol)
    supplied = list(Chem.SDMolSupplier(str(path), removeHs=False))
    records = list(iterate_sdf_records(iterate_lines(path)))
    mols = [parse_mol_block(record.mol_block) for record in records]
    assert [Chem.MolToSmiles(mol) for mol in mols] == [Chem.MolToSmiles(mol) for mol in supplied]
    assert [record.properties for record in records] == [
        mol.GetPropsAsDict(False, False, False) for mol in supplied
    ]


@pytest.mark.parametrize("mol_block", ["", "\n\n\n", "junk", BLOCK.replace("  3  2", " 99 98")])
def test_unreadable_block_gives_a_reason_without_noise(
    mol_block: str, capfd: pytest.CaptureFixture[str]
) -> None:
    error = parse_mol_block(mol_block)
    assert isinstance(error, MoleculeError) and error.reason
    assert not any(it in error.reason for it in ("Stacktrace", ".cpp", "**"))
    assert compute_record_smiles(error) is None
    assert capfd.readouterr().err == ""


def test_impossible_valence_comes_back_unsanitized(capfd: pytest.CaptureFixture[str]) -> None:
    mol = Chem.MolFromSmiles("C(C)(C)(C)(C)C", sanitize=False)
    mol.UpdatePropertyCache(strict=False)
    read_back = parse_mol_block(Chem.MolToMolBlock(mol, kekulize=False))
    assert read_back is not None
    assert read_back.GetNumAtoms() == 6
    assert compute_record_smiles(read_back) == Chem.MolToSmiles(mol)
    assert capfd.readouterr().err == ""
    with pytest.raises(Chem.AtomValenceException, match="valence"):
        Chem.SanitizeMol(read_back)


@pytest.mark.parametrize(
    ("content", "properties"),
    [
        (f"{BLOCK}>  <activity>\n>10\n\n>  <unit>\nnM\n\n", {"activity": ">10", "unit": "nM"}),
        (f"{BLOCK}>  DT12\n5\n\n>  <y>\n1\n\n", {"y": "1"}),
        (">  <y>\n1\n\n", {"y": "1"}),
    ],
    ids=["like a header", "no name", "no mol block"],
)
def test_properties_are_read_with_either_end_of_a_line(
    content: str, properties: dict[str, str]
) -> None:
    (record,) = read(f"{content}$$$$\n")
    assert record.properties == properties
    assert read(f"{content}$$$$\n".replace("\n", "\r\n")) == [record]


def test_smiles_of_a_record_has_no_explicit_hydrogens() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("CO"))
    for block in (Chem.MolToMolBlock(mol), Chem.MolToV3KMolBlock(mol)):
        read_back = parse_mol_block(block)
        assert not isinstance(read_back, MoleculeError) and read_back.GetNumAtoms() == 6
        assert compute_record_smiles(read_back) == "CO"
