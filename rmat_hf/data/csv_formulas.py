"""Keep a spreadsheet from running the text of strangers as a formula (CSV injection)."""

import logging
import re
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

# What to do with text that starts like a formula: an apostrophe in front, or nothing.
FormulaHandling = Literal["escape", "keep"]

# The starts that OWASP lists, after any blanks, tabs and line breaks; full-width ones count in
# Japanese spreadsheets.
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠].*\w", re.DOTALL)
# A number, also with another decimal point or grouping, and a percent sign
_NUMBER = re.compile(
    r"\s*[+-]\s*(\d[\d.,' ]*|[.,]\d+)(e[+-]?\d+)?\s*%?\s*|\s*[+-](inf|infinity|nan)\s*"
)


def starts_like_formula(text: str) -> bool:
    """Tell whether a spreadsheet may run a cell: it starts with =, +, - or @ and is no number.

    No valid SMILES does. Signs alone, as in a cell for "none", are no formula.
    """
    return bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text.lower())


class FormulaEscaper:
    """Puts an apostrophe in front of text that starts like a formula, and counts it.

    Numbers and all other text stay as they are. Without the apostrophe in front of `=`, `+`, `-` or
    `@` a cell is the original again.

    Args:
        handling (`str`, *optional*, defaults to `"escape"`): `"keep"` leaves everything as it is.
    """

    def __init__(self, handling: FormulaHandling = "escape") -> None:
        self.handling = handling
        self.num_escaped = 0

    def escape(self, value: object) -> object:
        """Return a cell as it is to be written."""
        if self.handling == "keep" or not isinstance(value, str) or not starts_like_formula(value):
            return value
        self.num_escaped += 1
        return "'" + value

    def log_count(self, path: Path) -> None:
        """Tell how many cells of a file got an apostrophe, if any did."""
        if self.num_escaped:
            logger.warning(
                "%s: %d cells start like a formula; an apostrophe in front keeps spreadsheets from "
                "running them.",
                path,
                self.num_escaped,
            )
