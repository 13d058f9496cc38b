import logging

import pytest

from rmat_hf.message_text import MAX_MESSAGE, MessageFormatter, describe_value, escape_message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a.csv: no such file", "a.csv: no such file"),
        ("é 分子 ångström", "é 分子 ångström"),
        ("x\x1b[31m\x07.csv", r"x\x1b[31m\x07.csv"),
        ("two\nlines\r\n and\ttabs", "two lines and tabs"),
        ("\u202egnp.csv", r"\u202egnp.csv"),
        ("\udcff.csv", r"\udcff.csv"),
        ("nul\0", r"nul\x00"),
    ],
)
def test_a_message_is_one_line_without_power_over_the_terminal(text: str, shown: str) -> None:
    assert escape_message(text) == shown
    assert shown.isprintable()


def test_a_long_message_keeps_both_its_ends() -> None:
    shown = escape_message("start " + "C" * 10_000_000 + " end")
    assert shown.startswith("start CCC")
    assert shown.endswith("CCC end")
    assert "[... 9998010 characters ...]" in shown
    assert len(shown) < MAX_MESSAGE + 50


def test_values_are_shown_short() -> None:
    assert describe_value("high") == "'high'"
    assert describe_value("\x1b[31m") == r"'\x1b[31m'"
    assert describe_value(1.5) == "1.5"
    assert len(describe_value("C" * 10_000_000)) <= 82
    assert len(describe_value(list(range(100_000)))) <= 82


def test_log_records_are_escaped() -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "%s: bad", ("a\n\x1b[2J.csv",), None)
    line = MessageFormatter("%(levelname)s: %(message)s").format(record)
    assert line == r"WARNING: a \x1b[2J.csv: bad"
