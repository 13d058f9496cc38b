"""Files of strangers: damaged, mislabeled, endless, huge or malicious."""

import gzip
import io
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from rdkit import Chem
from rdkit.Chem import rdDepictor

Content = bytes | str | Callable[[Path], object]
VERBS = ("predict", "embed", "featurize", "finetune")


class HostileInput(NamedTuple):
    """One input and what `rmat predict` (else the first verb) makes of it."""

    description: str  # as the documentation calls it
    name: str  # of the file
    content: Content  # or a function that makes the file at a path
    words: str  # out of the message of the refusal or the reason; empty for a prediction
    exit_code: int = 2  # 0 for an output with a row per molecule, 2 for a refusal
    num_rows: int = 1
    verbs: tuple[str, ...] = VERBS  # that read such a file

    def write(self, folder: Path) -> Path:
        """Make the file in a folder."""
        path = folder / self.name
        if callable(self.content):
            self.content(path)
        else:
            text = self.content
            path.write_bytes(text.encode() if isinstance(text, str) else text)
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
    """Write a chain with a ring closure for each further pair of atoms."""
    atoms = ["[U]"] * num_atoms
    pairs = combinations(range(num_atoms), 2)
    for label, pair in enumerate(it for it in pairs if it[1] - it[0] > 1):
        for idx in pair:
            atoms[idx] += f"%({label})"
    return "".join(atoms)


BLOCK = Chem.MolToMolBlock(_draw("CCO"))
PLAIN = b"smiles,y\nCCO,1.5\n"
PARQUET = _build_parquet({"smiles": ["CCO"], "y": [1.5]})

READ_ONLY = ("predict", "embed")
NO_FEATURIZE = ("predict", "embed", "finetune")
CSV, SDF = "in.csv", "in.sdf"

FILES = [
    HostileInput("no such file", CSV, lambda path: None, "no such file"),
    HostileInput("a header only", CSV, "smiles,y\n", "", 0, num_rows=0),
    HostileInput("UTF-8 with a byte order mark", CSV, b"\xef\xbb\xbf" + PLAIN, "", 0),
    HostileInput("UTF-16", CSV, PLAIN.decode().encode("utf-16"), "", 0),
    HostileInput("Latin-1", CSV, b"smiles,n\nCCO,na\xefve\n", "", 0),
    HostileInput("commas and line breaks in quotes", CSV, 'smiles,"a,b"\nC,"x\ny"\n', "", 0),
    HostileInput("a quote that never ends", CSV, 'smiles,n\nC,"x\n', "line 2: unexpected end"),
    HostileInput("a line with too few cells", CSV, "smiles,y\nC\n", "line 2: 1 cells"),
    HostileInput("a cell of 10 MB", CSV, "smiles,n\nC," + "x" * 10**7, "field larger than"),
    HostileInput("NUL in the header", CSV, b"smiles\0,y\nC,1\n", "blank or binary"),
    HostileInput("two columns of one name", CSV, "smiles,smiles\nC,C\n", "Rename one"),
    HostileInput("a name in other letters", CSV, "SMILES,y\nC,1\n", "", 0),
    HostileInput("semicolons", CSV, "smiles;y\nC;1,5\n", "", 0),
    HostileInput("an Excel workbook", CSV, b"PK\x03\x04\x14\0junk", "Name a workbook .xlsx"),
    HostileInput("gzip cut off", "in.csv.gz", gzip.compress(PLAIN * 9)[:-9], "ended before"),
    HostileInput("a folder", CSV, Path.mkdir, "is a folder", verbs=NO_FEATURIZE),
    HostileInput(
        "an endless device", CSV, lambda path: path.symlink_to("/dev/zero"), "a pipe or a device"
    ),
    HostileInput(
        "escape sequences in the name", "a\x1b[2J\n\u202eb.csv", b"", r"a\x1b[2J \u202eb.csv is not"
    ),
    HostileInput(
        "a folder whose README names a file outside",
        "in",
        _write_reaching_folder,
        "README.md",
        verbs=NO_FEATURIZE,
    ),
    HostileInput(
        "text in Parquet that expands to 2 GB",
        "in.parquet",
        _write_bomb,
        "expand to",
        verbs=READ_ONLY,
    ),
    HostileInput("CSV named .parquet", "in.parquet", PLAIN, "cannot be read"),
    HostileInput(
        "numbers for SMILES",
        "in.parquet",
        _build_parquet({"smiles": [1.5], "y": [1]}),
        "which is not text",
    ),
    HostileInput(
        "an output column in the input",
        CSV,
        "smiles,error\nC,x\n",
        "already has a column 'error'",
        verbs=READ_ONLY,
    ),
]

SDFS = [
    HostileInput("SDF with a wrong counts line", SDF, BLOCK.replace("  3  2", " 99 98"), "line", 0),
    HostileInput("SDF without M  END", SDF, BLOCK.replace("M  END", ""), "has an 'M END'"),
    HostileInput(
        "SDF with a property twice",
        SDF,
        f"{BLOCK}> <y>\n1\n\n> <y>\n2\n\n",
        "two properties are called 'y'",
    ),
    HostileInput(
        "SDF of 400 MB of short lines without $$$$",
        "in.sdf.gz",
        gzip.compress(b"a b\n" * 10**5) * 1000,
        "record 0 (counted from 0) has more than 1048576 lines",
    ),
    HostileInput("SDF of 20,000 atoms", SDF, _write_chain, "20000 heavy atoms are more than", 0),
    HostileInput(
        "SDF with coordinates NaN", SDF, BLOCK.replace("0.0000 C", "   nan C"), "Cannot", 0
    ),
]


def _build_row(description: str, smiles: str, words: str) -> HostileInput:
    cell = smiles.replace('"', '""')
    return HostileInput(description, CSV, f'smiles,y\n"{cell}",1\n', words, 0)


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
    _build_row("a spreadsheet formula", "=cmd|' /C calc'!A0", "words, and no SMILES"),
]


def _build_label(description: str, label: str, words: str) -> HostileInput:
    content = f'smiles,y\nCCN,"{label}"\nCC,2\n'
    return HostileInput(description, CSV, content, words, verbs=("finetune",))


LABELS = [
    _build_label("the label 1e39", "1e39", "'1e39', not a number"),
    _build_label("the label 1_000", "1_000", "'1_000', not a number"),
    _build_label("a label of 100,000 characters", "x" * 100_000, "not a number"),
]

HOSTILE_INPUTS = [*FILES, *SDFS, *MOLECULES, *LABELS]
