"""Text of strangers in messages: short, on one line, and without power over a terminal."""

import logging
import reprlib

# Characters of a message on the screen; its end tells the way out, so the middle is left out.
MAX_MESSAGE = 2000
# Characters of a cell or a name in a message.
MAX_VALUE = 80


def describe_value(value: object) -> str:
    """Return the `repr` of a cell or a name, in 80 characters if it is text."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = MAX_VALUE
    return shortener.repr(value)


def escape_message(text: str) -> str:
    r"""Return a message on one line, in at most `MAX_MESSAGE` characters before escapes.

    Control characters, escape sequences, marks that turn the direction of writing and undecodable
    bytes are shown as escapes such as `\x1b`; a file name cannot color, erase or forge lines.
    """
    line = " ".join(text.split())
    if len(line) > MAX_MESSAGE:
        half = MAX_MESSAGE // 2
        line = f"{line[:half]} [... {len(line) - 2 * half} characters ...] {line[-half:]}"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in line
    )


class MessageFormatter(logging.Formatter):
    """Formats log records whose messages name files and cells of strangers."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line of a record with its message escaped."""
        record.message = escape_message(record.message)
        return super().formatMessage(record)
