"""Read the records of an SDF file without losing those that RDKit cannot read."""

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass

from rdkit import Chem, rdBase

from rmat_hf.model.features_rmat import MoleculeError, is_tractable, silence_rdkit

# Shorter mol blocks are sanitized at once: no molecule in them takes RDKit long.
QUICK_BLOCK_LENGTH = 10_000
# Of a record, which is in memory as a whole; that of a molecule of 20,000 atoms has 40,000 lines.
MAX_RECORD_LINES = 2**20
# Characters of a record, or of a line: a small file can decompress to one endless line.
MAX_LENGTH = 2**26
PROPERTY_HEADER = re.compile(r"^>.*?<(.*)>")


@dataclass(frozen=True)
class SdfRecord:
    """One record: title line, mol block (empty when there is none) and properties as text."""

    title: str
    mol_block: str
    properties: dict[str, str]


def iterate_sdf_records(lines: Iterable[str]) -> Iterator[SdfRecord]:
    """Yield the records of a file's lines; a `ValueError` names a record that is ambiguous.

    The text of a property is exact, without the line break at its end.
    """
    waiting: list[str] = []
    num_records = length = 0
    for line in lines:
        if line.startswith("$$$$"):
            yield _parse_record(waiting, num_records)
            num_records += 1
            waiting, length = [], 0
            continue
        length += len(line)
        if len(waiting) == MAX_RECORD_LINES or length > MAX_LENGTH:
            raise ValueError(
                f"record {num_records} (counted from 0) has more than {MAX_RECORD_LINES} lines "
                f"or {MAX_LENGTH} characters. End it with a line $$$$, or drop it"
            )
        waiting.append(line.rstrip("\r\n"))
    if any(line.strip() for line in waiting):
        yield _parse_record(waiting, num_records)


def _parse_record(lines: list[str], idx: int) -> SdfRecord:
    block_end = next((i + 1 for i, line in enumerate(lines) if line.startswith("M  END")), 0)
    texts: dict[str, list[str]] = {}
    values: list[str] | None = None
    for line in lines[block_end:]:
        if values is None and line.startswith(">"):
            values = []
            if header := PROPERTY_HEADER.match(line):
                if header[1] in texts:
                    raise ValueError(
                        f"record {idx} (counted from 0): two properties are called {header[1]!r}. "
                        "Rename one"
                    )
                texts[header[1]] = values
        elif not line.strip():
            values = None
        elif values is not None:
            values.append(line)
    properties = {name: "\n".join(text) for name, text in texts.items()}
    return SdfRecord(lines[0] if lines else "", "\n".join(lines[:block_end]), properties)


def parse_mol_block(mol_block: str) -> Chem.Mol | MoleculeError:
    """Return the molecule with all its hydrogens and coordinates, or why RDKit cannot read it.

    Where the chemistry is wrong, or too much for RDKit, the molecule comes back unsanitized, so
    that whoever sanitizes it gets the reason.
    """
    with silence_rdkit():
        if len(mol_block) > QUICK_BLOCK_LENGTH:
            drawn = Chem.MolFromMolBlock(mol_block, removeHs=False, sanitize=False)
            if drawn is not None and not is_tractable(drawn):
                return drawn
        for sanitize in (True, False):
            mol = Chem.MolFromMolBlock(mol_block, removeHs=False, sanitize=sanitize)
            if mol is not None:
                return mol
    return MoleculeError(_find_reason(mol_block))


def _find_reason(mol_block: str) -> str:
    """Return why RDKit cannot read a mol block: it says so in its log of warnings only."""
    rdBase.LogToPythonStderr()
    try:
        with redirect_stderr(io.StringIO()) as log:
            Chem.MolFromMolBlock(mol_block, sanitize=False)
    finally:
        rdBase.LogToCppStreams()
    reason = " ".join(log.getvalue().split()).partition("] ")[2]
    return reason or "the record has no mol block that RDKit reads"


def compute_record_smiles(mol: Chem.Mol | MoleculeError) -> str | None:
    """Return the SMILES without explicit hydrogens, of an unsanitized molecule as it is drawn.

    `None` stands for what RDKit cannot write.
    """
    if isinstance(mol, MoleculeError) or not is_tractable(mol):
        return None
    with silence_rdkit():
        for prepare in (Chem.RemoveHs, Chem.Mol):  # RDKit may refuse to sanitize it
            with suppress(RuntimeError, ValueError):
                return str(Chem.MolToSmiles(prepare(mol)))
    return None
