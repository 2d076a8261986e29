"""`nexus edge render nginx|envoy|haproxy`: the configuration for running behind one of them."""

import os
from pathlib import Path
from typing import Annotated

import typer

from nexus.cli import screen
from nexus.core import errors


def register(app: typer.Typer) -> None:
    edge = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Run behind nginx, Envoy or HAProxy.")
    edge.callback()(_nothing)
    edge.command("render")(render)
    app.add_typer(edge, name="edge")


def _nothing() -> None:
    """A callback, so that a Typer with one command is still a group."""


def render(
    proxy: Annotated[str, typer.Argument(help="nginx, envoy or haproxy.")],
    server_name: Annotated[
        list[str] | None, typer.Option("--server-name", help="A host name that clients use; repeatable.")
    ] = None,
    upstream: Annotated[
        list[str] | None, typer.Option("--upstream", help="host:port of a gateway; repeatable. Default: this machine's.")
    ] = None,
    listen: Annotated[
        int | None, typer.Option("--listen", min=1, max=65535, help="Port; default 443, or 80 without TLS.")
    ] = None,
    certificate: Annotated[str | None, typer.Option("--certificate", help="PEM chain, for TLS and HTTP/2.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="PEM key of the certificate.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here and not to standard output.")] = None,
) -> None:
    """Print a configuration that streams events at once, passes WebSockets and sends no run twice."""
    from nexus.apps import edge

    renderer = edge.RENDERERS.get(proxy)
    if renderer is None:
        raise errors.Invalid(
            f"there is no configuration for {proxy[:40]!r}",
            code="edge.invalid",
            cause=f"there are {', '.join(edge.RENDERERS)}",
            next_step="nexus edge render nginx --server-name agents.example.com",
        )
    default = f"{os.environ.get('NEXUS_HOST') or '127.0.0.1'}:{os.environ.get('NEXUS_PORT') or '8700'}"
    text = renderer(
        edge.parse_edge(
            names=tuple(server_name or ()),
            upstreams=tuple(upstream or (default,)),
            port=listen,
            certificate=certificate,
            key=key,
        )
    )
    if output is None:
        screen.write(text, end="")
    else:
        output.write_text(text, encoding="utf-8")
        screen.note(f"wrote {output}")
