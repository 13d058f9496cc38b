"""A command whose list flags take several values."""

from typing import Any

from typer.core import TyperCommand


class ListFlagCommand(TyperCommand):
    """A command whose list flags take several values: `--smiles CCO CCN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the flag before each of its values, as click wants it."""
        list_flags = {
            flag
            for parameter in self.params
            if getattr(parameter, "multiple", False)
            for flag in parameter.opts
        }
        args = [
            part
            for arg in args
            for part in (arg.split("=", 1) if arg.split("=", 1)[0] in list_flags else [arg])
        ]
        expanded: list[str] = []
        current = None
        for arg in args:
            if arg.startswith("--"):
                current = arg if arg in list_flags else None
                if current is None:
                    expanded.append(arg)
            elif current is not None:
                expanded += [current, arg]
            else:
                expanded.append(arg)
        return super().parse_args(ctx, expanded)
