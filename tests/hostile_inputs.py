"""Files of strangers: damaged, mislabeled, endless, huge or malicious."""

import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rdkit import Chem
from rdkit.Chem import rdDepictor

Content = bytes | str | Callable[[Path], object]
VERBS = ("predict", "embed", "featurize", "finetune")


@dataclass(frozen=True)
class HostileInput:
    """One input and what `rmat predict` (else the first verb) makes of it.

    Args:
        description (`str`): As the documentation calls it.
        name (`str`): Of the file.
        content: Bytes, text, or a function that makes the file at a path.
        exit_code (`int`): 0 for an output with a row per molecule, 2 for a refusal.
        words (`str`): Out of the message of the refusal, or of the reason in the column `error`;
            empty for a molecule that is predicted.
        num_rows (`int`): Rows of the output.
        verbs (`tuple[str, ...]`): Commands that read such a file.
    """

    description: str
    name: str
    content: Content
    exit_code: int
    words: str
    num_rows: int = 1
    verbs: tuple[str, ...] = VERBS

    def write(self, folder: Path) -> Path:
        """Make the file in a folder."""
        path = folder / self.name
        if callable(self.content):
            self.content(path)
        else:
            path.write_bytes(
                self.content.encode() if isinstance(self.content, str) else self.content
            )
        return path


def _draw(smiles: str) -> Chem.Mol:
    mol = Chem.MolFromSmiles(smiles)
    rdDepictor.Compute2DCoords(mol)
    return mol


def _write_chain(path: Path) -> None:
    """A V3000 record of 20,000 atoms in a chain, which ends RDKit where it writes the SMILES."""
    n = 20_000
    lines = ["", "", "", "  0  0  0     0  0            999 V3000", "M  V30 BEGIN CTAB"]
    lines += [f"M  V30 COUNTS {n} {n - 1} 0 0 0", "M  V30 BEGIN ATOM"]
    lines += [f"M  V30 {i} C 0 0 0 0" for i in range(1, n + 1)]
    lines += ["M  V30 END ATOM", "M  V30 BEGIN BOND"]
    lines += [f"M  V30 {i} 1 {i} {i + 1}" for i in range(1, n)]
    lines += ["M  V30 END BOND", "M  V30 END CTAB", "M  END", "$$$$", ""]
    path.write_text("\n".join(lines))


def _write_reaching_folder(path: Path) -> None:
    path.mkdir()
    (path / "a.csv").write_bytes(PLAIN)
    (path / "README.md").write_text("---\nconfigs:\n- data_files: ../secret.csv\n---\n")


def _write_bomb(path: Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 8192, pa.int32()), ["C" * 250_000])
    pq.write_table(pa.table({"smiles": words}), path, store_schema=False)


def _build_parquet(columns: dict[str, object]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def _build_cluster(num_atoms: int) -> str:
    mol = Chem.RWMol()
    for end in range(num_atoms):
        mol.AddAtom(Chem.Atom("U"))
        for begin in range(end):
            mol.AddBond(begin, end, Chem.BondType.SINGLE)
    return str(Chem.MolToSmiles(mol, canonical=False))


BLOCK = Chem.MolToMolBlock(_draw("CCO"))
PLAIN = b"smiles,y\nCCO,1.5\n"
PARQUET = _build_parquet({"smiles": ["CCO"], "y": [1.5]})

FILES = [
    HostileInput("no such file", "in.csv", lambda path: None, 2, "no such file"),
    HostileInput("a header only", "in.csv", "smiles,y\n", 0, "", num_rows=0),
    HostileInput("UTF-8 with a byte order mark", "in.csv", b"\xef\xbb\xbf" + PLAIN, 0, ""),
    HostileInput("UTF-16", "in.csv", PLAIN.decode().encode("utf-16"), 2, "Save it as UTF-8"),
    HostileInput("Latin-1", "in.csv", b"smiles,n\nCCO,na\xefve\n", 2, "not UTF-8 text"),
    HostileInput("commas and line breaks in quotes", "in.csv", 'smiles,"a,b"\nC,"x\ny"\n', 0, ""),
    HostileInput(
        "a quote that never ends", "in.csv", 'smiles,n\nC,"x\n', 2, "line 2: unexpected end"
    ),
    HostileInput("a line with too few cells", "in.csv", "smiles,y\nC\n", 2, "line 2: 1 cells"),
    HostileInput(
        "a cell of 10 MB",
        "in.csv",
        lambda path: path.write_text("smiles,n\nC," + "x" * 10**7),
        2,
        "line 2: field larger than field limit",
    ),
    HostileInput("NUL in the header", "in.csv", b"smiles\0,y\nC,1\n", 2, "blank or binary"),
    HostileInput("two columns of one name", "in.csv", "smiles,smiles\nC,C\n", 2, "Rename one"),
    HostileInput("a name in other letters", "in.csv", "SMILES,y\nC,1\n", 2, "mean 'SMILES'?"),
    HostileInput("semicolons", "in.csv", "smiles;y\nC;1,5\n", 2, "another separator"),
    HostileInput(
        "an Excel workbook", "in.csv", b"PK\x03\x04\x14\0junk", 2, "Save the table as CSV"
    ),
    HostileInput("gzip cut off", "in.csv.gz", gzip.compress(PLAIN * 9)[:-9], 2, "ended before"),
    HostileInput(
        "a folder", "in.csv", Path.mkdir, 2, "is a folder", verbs=("predict", "embed", "finetune")
    ),
    HostileInput(
        "an endless device",
        "in.csv",
        lambda path: path.symlink_to("/dev/zero"),
        2,
        "a pipe or a device",
    ),
    HostileInput(
        "escape sequences in the name",
        "a\x1b[2J\n\u202eb.csv",
        b"",
        2,
        r"a\x1b[2J \u202eb.csv is not a CSV table",
    ),
    HostileInput(
        "a folder whose README names a file outside",
        "in",
        _write_reaching_folder,
        2,
        "README.md",
        verbs=("predict", "embed", "finetune"),
    ),
    HostileInput(
        "text in Parquet that expands to 2 GB",
        "in.parquet",
        _write_bomb,
        2,
        "expand to",
        verbs=("predict", "embed"),
    ),
    HostileInput("CSV named .parquet", "in.parquet", PLAIN, 2, "cannot be read"),
    HostileInput(
        "numbers for SMILES",
        "in.parquet",
        _build_parquet({"smiles": [1.5], "y": [1]}),
        2,
        "which is not text",
    ),
    HostileInput(
        "an output column in the input",
        "in.csv",
        "smiles,error\nC,x\n",
        2,
        "already has a column 'error'",
        verbs=("predict", "embed"),
    ),
]

SDFS = [
    HostileInput(
        "SDF with a wrong counts line", "in.sdf", BLOCK.replace("  3  2", " 99 98"), 0, "line"
    ),
    HostileInput(
        "SDF without M  END", "in.sdf", BLOCK.replace("M  END", ""), 2, "no record has an 'M END'"
    ),
    HostileInput(
        "SDF with a property twice",
        "in.sdf",
        f"{BLOCK}> <y>\n1\n\n> <y>\n2\n\n",
        2,
        "two properties are called 'y'",
    ),
    HostileInput(
        "SDF of 400 MB of short lines without $$$$",
        "in.sdf.gz",
        gzip.compress(b"a b\n" * 10**5) * 1000,
        2,
        "record 0 (counted from 0) has more than 1048576 lines",
    ),
    HostileInput(
        "SDF of 20,000 atoms", "in.sdf", _write_chain, 0, "20000 heavy atoms are more than"
    ),
    HostileInput(
        "SDF with coordinates NaN", "in.sdf", BLOCK.replace("0.0000 C", "   nan C"), 0, "Cannot"
    ),
]


def _build_row(description: str, smiles: str, words: str) -> HostileInput:
    cell = smiles.replace('"', '""')
    return HostileInput(description, "in.csv", f'smiles,y\n"{cell}",1\n', 0, words)


MOLECULES = [
    _build_row("a SMILES of 100,000 characters", "C" * 100_000, "100000 characters are too long"),
    _build_row("3,000 open brackets", "C(" * 3_000, "3000 heavy atoms"),
    _build_row("60 atoms all bonded to each other", _build_cluster(60), "bonds between 60 atoms"),
    _build_row("text after the SMILES", "CCO ethanol", "text after the SMILES"),
    _build_row("a Cyrillic O", "CC\u041e", "character U+041E"),
    _build_row("a SMARTS pattern", "[#6]~[C,N]", "query atom"),
    _build_row("999,999,999 hydrogens", "[CH999999999]", "Violation"),
    _build_row("a ring that is not closed", "C1CC", "unclosed ring"),
    _build_row("an empty cell", "", "is empty"),
    _build_row("a spreadsheet formula", "=cmd|' /C calc'!A0", "text after the SMILES"),
]


def _build_label(description: str, label: str, words: str) -> HostileInput:
    content = f'smiles,y\nCCO,1\nCCN,"{label}"\nCC,2\n'
    return HostileInput(description, "in.csv", content, 2, words, verbs=("finetune",))


LABELS = [
    _build_label("the label 1e39", "1e39", "'1e39', not a number"),
    _build_label("the label 1_000", "1_000", "'1_000', not a number"),
    _build_label("a label of 100,000 characters", "x" * 100_000, "not a number"),
]

HOSTILE_INPUTS = [*FILES, *SDFS, *MOLECULES, *LABELS]
