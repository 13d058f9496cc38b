from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from rmat_hf.list_flags import ListFlagCommand


@pytest.mark.parametrize(
    "flags",
    [
        ["--names", "a", "b", "--number", "3"],
        ["--number=3", "--names=a", "b"],
        ["--names", "a", "--names", "b", "--number", "3"],
    ],
)
def test_list_flag_takes_several_values(flags: list[str]) -> None:
    app, seen = typer.Typer(), []

    @app.command(cls=ListFlagCommand)
    def run(
        names: Annotated[list[str], typer.Option()], number: Annotated[int, typer.Option()]
    ) -> Any:
        seen.append((names, number))

    assert CliRunner().invoke(app, flags).exit_code == 0
    assert seen == [(["a", "b"], 3)]
