"""Write rows of CSV that every reader takes apart again."""

import csv
from typing import Any, TextIO


class _LineFeedStream:
    """Ends the rows of a `csv.writer` with a line feed alone."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, row: str) -> int:
        return self.stream.write(row.removesuffix("\r\n") + "\n")


def build_csv_writer(stream: TextIO) -> Any:
    r"""Return a `csv.writer` whose rows end with `\n`.

    A writer with that line terminator does not quote a lone `\r` before Python 3.13, and a cell
    with one would come back as two rows.
    """
    return csv.writer(_LineFeedStream(stream), lineterminator="\r\n")
