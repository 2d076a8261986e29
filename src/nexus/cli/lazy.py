"""Command groups whose members are imported when they are used, so that `nexus --help` imports none of them."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import typer
from typer import core

from nexus.core import errors


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is: `module` has `register(app)`, which adds it (and maybe others) to a Typer."""

    module: str
    help: str
    panel: str | None = None


class LazyGroup(core.TyperGroup):
    """Subclasses set `table`. Help and completion show the table; only running a command loads its module."""

    table: ClassVar[Mapping[str, Entry]] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in self.table.items():
            self.commands[name] = core.TyperCommand(name, help=entry.help, rich_help_panel=entry.panel)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The table under its panels' names. Plain text: rich's help would cost three times the start of Python."""
        panels = dict.fromkeys(entry.panel or "Commands" for entry in self.table.values())
        longest = max(map(len, self.table))
        for panel in panels:
            with formatter.section(panel):
                members = [(name, entry) for name, entry in self.table.items() if (entry.panel or "Commands") == panel]
                formatter.write_dl([(name.ljust(longest), entry.help) for name, entry in members])

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.table)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in self.table:
            command = load(name, self.table[name])
        return name, command, rest


def load(name: str, entry: Entry) -> Any:
    """The real command. Raises `Unavailable` when what it needs is not installed."""
    app = typer.Typer(rich_markup_mode=None)
    app.callback()(_nothing)
    try:
        importlib.import_module(entry.module).register(app)
    except ModuleNotFoundError as error:
        part = "[offline]" if error.name == "xllamacpp" else "[server]"
        raise errors.Unavailable(
            f"`nexus {name}` is not available in this installation",
            code="install.incomplete",
            cause=f"the module {error.name} is missing",
            next_step=f"pip install 'nexus-agent-hosting{part}'",
        ) from error
    group: Any = typer.main.get_command(app)
    return group.commands[name]


def _nothing() -> None:
    """A callback, so that a Typer with one command is still a group."""
