"""`nexus login`, `logout` and `whoami`: which host the other commands call, and with which key."""

import json
import os
import sys
from typing import Annotated

import typer

from nexus import client
from nexus.cli import connect, screen
from nexus.cli.options import Json
from nexus.client import connection
from nexus.core import errors
from nexus.kit import home


def register(app: typer.Typer) -> None:
    app.command("login")(login)
    app.command("logout")(logout)
    app.command("whoami")(whoami)


def login(
    url: Annotated[str, typer.Argument(help="Address of the host.")] = connection.DEFAULT_URL,
    key: Annotated[
        str | None, typer.Option("--key", help="The API key; better left out: it is asked for, or read from stdin.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check an address and key, and remember them for the other commands (readable by you alone)."""
    url = connection.check_url(url)
    key = (key or _ask()).strip()
    if not key:
        raise errors.Unauthenticated("no key was given", next_step="make one on the host: nexus keys create")
    with client.Client(url, key) as host:
        who = host.host.whoami()
    file = connection.credentials_file(home.find_home(os.environ.get("NEXUS_HOME")))
    _store(file, json.dumps({"url": url, "key": key}))
    told = {"url": url, "tenant": who.get("tenant"), "roles": who.get("roles"), "file": str(file)}
    screen.give(told, as_json=as_json, text=f"logged in to {url} as {who.get('id')} of tenant {who.get('tenant')}")


def _ask() -> str:
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass("API key (not shown): ")
    return sys.stdin.readline()


def _store(file: "os.PathLike[str]", content: str) -> None:
    """Replace the file at once; nobody else can read it at any moment."""
    path = os.fspath(file)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    partial = f"{path}.{os.getpid()}.new"
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(content)
    os.replace(partial, path)


def logout(as_json: Json = False) -> None:
    """Forget the address and key of `nexus login`."""
    file = connection.credentials_file(home.find_home(os.environ.get("NEXUS_HOME")))
    known = file.exists()
    file.unlink(missing_ok=True)
    screen.give({"forgotten": known}, as_json=as_json, text="logged out" if known else "nothing was remembered")


def whoami(as_json: Json = False) -> None:
    """Show which host and key the other commands use."""
    with connect.open_client() as host:
        who = host.host.whoami()
        told = {"url": host.base_url, "source": host.connection.source, **who}
    roles = ", ".join(map(str, who.get("roles") or ()))
    text = f"{who.get('id')} of tenant {who.get('tenant')} ({roles}) at {told['url']} ({told['source']})"
    screen.give(told, as_json=as_json, text=text)
