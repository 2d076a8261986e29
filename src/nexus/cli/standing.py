"""What `nexus schedules` and `nexus triggers` share: a group of commands that list, show, pause, resume and delete by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from nexus.cli import connect, screen
from nexus.cli.options import Json

Entry = Mapping[str, Any]
Agent = Annotated[str | None, typer.Argument(help="Only this agent's.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One of the two. `noun` in the singular; `columns` and `row` make the list, `details` what `show` shows; `does` says in a
    sentence what an entry does that was resumed."""

    noun: str
    about: str
    create: Callable[..., None]
    columns: Sequence[str]
    row: Callable[[Entry], Sequence[Any]]
    details: Callable[[Entry], Sequence[tuple[str, Any]]]
    does: Callable[[Entry], str]
    pause: str
    resume: str

    @property
    def plural(self) -> str:
        return f"{self.noun}s"


def register(app: typer.Typer, kind: Kind) -> None:
    """Add the group with `create` and the five commands."""
    group = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help=kind.about)
    group.command("create")(kind.create)
    named = Annotated[str, typer.Argument(help=f"Name of the {kind.noun}.", show_default=False)]

    def entries(agent: Agent = None, as_json: Json = False) -> None:
        with connect.open_client() as host:
            found = getattr(host, kind.plural).list(agent)
        if as_json:
            screen.write_json(found)
        else:
            screen.table(kind.columns, [kind.row(each) for each in found], empty=f"no {kind.plural}")

    def show(name: named, as_json: Json = False) -> None:
        with connect.open_client() as host:
            found = getattr(host, kind.plural).show(name)
        if as_json:
            screen.write_json(found)
        else:
            screen.table(("", name), kind.details(found), empty="")

    def pause(name: named, as_json: Json = False) -> None:
        with connect.open_client() as host:
            found = getattr(host, kind.plural).pause(name)
        screen.give(found, as_json=as_json, text=f"{name} is paused")

    def resume(name: named, as_json: Json = False) -> None:
        with connect.open_client() as host:
            found = getattr(host, kind.plural).resume(name)
        screen.give(found, as_json=as_json, text=f"{name} {kind.does(found)}")

    def delete(name: named, as_json: Json = False) -> None:
        with connect.open_client() as host:
            getattr(host, kind.plural).delete(name)
        screen.give({"deleted": name}, as_json=as_json, text=f"{name} is deleted")

    group.command("list", help=f"List {kind.plural}.")(entries)
    group.command("show", help=f"Show a {kind.noun}.")(show)
    group.command("pause", help=kind.pause)(pause)
    group.command("resume", help=kind.resume)(resume)
    group.command("delete", help=f"Delete a {kind.noun}; its tasks stay.")(delete)
    app.add_typer(group, name=kind.plural)
