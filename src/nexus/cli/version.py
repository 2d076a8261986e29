"""`nexus version`."""

import platform

import typer

import nexus
from nexus.cli.options import Json


def register(app: typer.Typer) -> None:
    app.command("version")(version)


def version(as_json: Json = False) -> None:
    """Print the version of Nexus."""
    from nexus.cli import screen

    told = {"version": nexus.__version__, "python": platform.python_version(), "platform": platform.platform()}
    screen.give(told, as_json=as_json, text=f"nexus {told['version']} (Python {told['python']}, {told['platform']})")
