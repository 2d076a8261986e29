"""`nexus ai agent dev`: one agent on this machine with hot reload, in the box's own worker, without deploying."""

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from nexus.cli import screen
from nexus.cli.agent import dev_loop, logs, project
from nexus.cli.options import Json
from nexus.core import errors

DEFAULT_PORT = 8800


def register(app: typer.Typer) -> None:
    app.command("dev")(dev)


def dev(
    path: Annotated[Path, typer.Argument(help="The agent's folder.")] = Path(),
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port to listen on.")] = DEFAULT_PORT,
    own_models: Annotated[bool, typer.Option("--no-host", help="Do not use the models of a running host.")] = False,
    as_json: Json = False,
) -> None:
    """Run one agent here, with hot reload and without deploying. Ctrl-C ends it."""
    found = project.read(path)
    models = _models(os.environ, use_host=not own_models)
    screen.note(models.words)
    if not dev_loop.is_free(port):
        raise errors.Conflict(
            f"port {port} is in use", code="port.in_use", next_step=f"choose another: nexus ai agent dev --port {port + 1}"
        )
    missing = [name for name in found.config.hosting.secrets if name not in os.environ]
    if missing:
        screen.note(f"secrets that are not in this environment: {', '.join(missing)} (export them to use them here)", "yellow")
    scratch = Path(tempfile.mkdtemp(prefix="nexus-dev-"))
    session = dev_loop.Session(
        folder=found.folder.absolute(), port=port, models=models.env, scratch=scratch, tell=_tell_json if as_json else _tell
    )
    try:
        asyncio.run(session.run())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class Models:
    """Where the agent's model calls go, and the sentence that says so."""

    def __init__(self, env: Mapping[str, str], words: str) -> None:
        self.env, self.words = env, words


def _models(environ: Mapping[str, str], *, use_host: bool) -> Models:
    if environ.get("OPENAI_BASE_URL") or environ.get("ANTHROPIC_BASE_URL"):
        return Models({}, "models: as OPENAI_BASE_URL or ANTHROPIC_BASE_URL in this environment says")
    if use_host and (host := _host_models()) is not None:
        return host
    provider = next((name for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY") if environ.get(name)), None)
    if provider is not None:
        hint = "" if environ.get("NEXUS_MODEL") else " (NEXUS_MODEL names the model self.llm uses)"
        return Models({}, f"models: the provider, with {provider} from this environment{hint}")
    return Models({}, "models: none; start a host (nexus up) or export a provider's key such as OPENAI_API_KEY")


def _host_models() -> Models | None:
    """The models door of the host the other commands call, if it answers and takes our key."""
    from nexus import client

    try:
        with client.Client(timeout=2.0) as host:
            host.host.whoami()
            url, key = host.base_url, host.connection.api_key or ""
    except errors.NexusError:
        return None
    env = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key, "ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": key}
    return Models(env, f"models: those of the host at {url}")


def _tell(event: dev_loop.Event) -> None:
    if event.name == "log":
        screen.to_output().print(logs.render_line(dict(event.data)))
    elif event.name == "ready":
        screen.note(f"ready: {event.data['name']} at {event.data['url']}", "bold green")
        screen.note(f"  curl -X POST {event.data['url']} -H 'Content-Type: application/json' -d '{{\"input\": \"Hello\"}}'")
    elif event.name == "failed":
        screen.show_error(event.error or errors.Internal("the agent failed"), as_json=False)
        screen.note("waiting for a change")
    else:
        screen.note(" ".join(str(part) for part in (event.name, *event.data.values()) if part))


def _tell_json(event: dev_loop.Event) -> None:
    print(json.dumps({"event": event.name, **event.data}, default=str), flush=True)
