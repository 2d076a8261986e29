"""`nexus ai agent secret set|list|delete`: a value goes in and is never shown again."""

import sys
from typing import Annotated

import typer

from nexus.cli import connect, screen
from nexus.cli.options import Agent, Json
from nexus.core import errors

Key = Annotated[str, typer.Argument(help="Name of the secret, as the environment variable is called.", show_default=False)]
_LARGEST = 64 * 1024


def register(app: typer.Typer) -> None:
    secret = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Secrets of an agent.")
    secret.command("set")(set_secret)
    secret.command("list")(list_secrets)
    secret.command("delete")(delete_secret)
    app.add_typer(secret, name="secret")


def set_secret(
    agent: Agent,
    key: Key,
    value: Annotated[str | None, typer.Argument(help="The value; better left out: it is asked for, or read from stdin.")] = None,
    as_json: Json = False,
) -> None:
    """Set a secret. The agent's instances restart one after the other with the new value."""
    if value is None:
        value = _ask(key)
    if not value or len(value.encode("utf-8", "surrogateescape")) > _LARGEST or "\0" in value:
        raise errors.Invalid(
            f"the value of {key} is {'empty' if not value else 'too large or holds a NUL character'}",
            code="secret.invalid_value",
            next_step=f"give 1 to {_LARGEST} bytes of text",
        )
    with connect.open_client() as host:
        view = host.secrets.set(agent, key, value)
    screen.give(dict(view), as_json=as_json, text=f"{key} is set for {agent}")


def _ask(key: str) -> str:
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass(f"Value of {key} (not shown): ")
    try:
        text = sys.stdin.buffer.read(_LARGEST + 3).decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.Invalid(
            f"the value of {key} is not UTF-8 text", code="secret.invalid_value", next_step="encode it"
        ) from error
    return text.removesuffix("\n").removesuffix("\r")


def list_secrets(agent: Agent, as_json: Json = False) -> None:
    """List the names of an agent's secrets."""
    with connect.open_client() as host:
        found = host.secrets.list(agent)
    if as_json:
        screen.write_json(found)
        return
    screen.table(
        ("SECRET", "FINGERPRINT", "VERSION", "CHANGED", "BY"),
        [
            (
                one.get("name"),
                one.get("fingerprint"),
                one.get("version"),
                screen.moment(one.get("updated_at")),
                one.get("updated_by"),
            )
            for one in found
        ],
        empty=f"{agent} has no secrets: nexus ai agent secret set {agent} KEY",
    )


def delete_secret(agent: Agent, key: Key, as_json: Json = False) -> None:
    """Delete a secret."""
    with connect.open_client() as host:
        host.secrets.delete(agent, key)
    screen.give({"deleted": key, "agent": agent}, as_json=as_json, text=f"deleted {key} of {agent}")
