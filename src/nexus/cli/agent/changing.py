"""`nexus ai agent rollback`, `scale` and `delete`: changing what is deployed."""

import sys
import time
from typing import Annotated

import typer

from nexus import client
from nexus.cli import connect, screen
from nexus.cli.agent import rollout
from nexus.cli.options import Agent, Environment, Json
from nexus.core import errors

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Watch until it is done.")]

_LOOK_EVERY_S = 0.2


def register(app: typer.Typer) -> None:
    app.command("rollback")(rollback)
    app.command("scale")(scale)
    app.command("delete")(delete)


def rollback(
    agent: Agent,
    version: Annotated[str | None, typer.Option("--version", help="The version to go back to; default: the one before.")] = None,
    sessions: Annotated[
        str | None, typer.Option("--sessions", help="Those that run now: keep the version they are on, or move.")
    ] = None,
    environment: Environment = None,
    wait: Wait = True,
    as_json: Json = False,
) -> None:
    """Go back to the version before, or to a named one, without failing a request."""
    with connect.open_client() as host:
        started = host.agents.rollback(agent, version=version, environment=environment, sessions=sessions)
        view = _watch(host, started, as_json=as_json) if wait else started
    text = f"{agent} {'is' if wait else 'goes'} back to {view.get('version')} in {view.get('environment')}"
    screen.give(view.view, as_json=as_json, text=text)


def scale(
    agent: Agent,
    replicas: Annotated[int | None, typer.Option("--replicas", min=0, help="How many instances, now.")] = None,
    autoscale: Annotated[str | None, typer.Option("--autoscale", help="on or off.")] = None,
    least: Annotated[int | None, typer.Option("--min", min=0, help="Fewest instances when scaling automatically.")] = None,
    most: Annotated[int | None, typer.Option("--max", min=1, help="Most instances when scaling automatically.")] = None,
    target_cpu: Annotated[int | None, typer.Option("--target-cpu", min=1, max=100, help="CPU to aim at, in per cent.")] = None,
    target_memory: Annotated[int | None, typer.Option("--target-memory", min=1, max=100, help="Memory to aim at.")] = None,
    cpu: Annotated[str | None, typer.Option("--cpu", help="CPU per instance: 500m, 2.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", help="Memory per instance: 512Mi, 2GB.")] = None,
    environment: Environment = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Watch until it is done.")] = False,
    as_json: Json = False,
) -> None:
    """Change how many instances there are, how large, and whether that follows the load."""
    if autoscale not in (None, "on", "off"):
        raise errors.Invalid(f"--autoscale is on or off, not {autoscale!r}", code="scale.invalid", next_step="--autoscale on")
    if all(value is None for value in (replicas, autoscale, least, most, target_cpu, target_memory, cpu, memory)):
        raise errors.Invalid("nothing to change", code="scale.invalid", next_step=f"nexus ai agent scale {agent} --replicas 3")
    with connect.open_client() as host:
        started = host.agents.scale(
            agent,
            replicas=replicas,
            autoscale=None if autoscale is None else autoscale == "on",
            environment=environment,
            min_replicas=least,
            max_replicas=most,
            target_cpu=target_cpu,
            target_memory=target_memory,
            cpu=cpu,
            memory=memory,
        )
        view = _settle(host, started, as_json=as_json) if wait else started
    scaling = view.get("autoscale") or {}
    automatic = f"{scaling.get('min_replicas')} to {scaling.get('max_replicas')}" if scaling.get("enabled") else "off"
    text = f"{agent} in {view.get('environment')}: {view.get('replicas')} replicas, autoscale {automatic}"
    screen.give(view.view, as_json=as_json, text=text)


def _watch(host: client.Client, started: client.Answer, *, as_json: bool) -> client.Answer:
    progress = rollout.Progress(screen.to_user())
    with progress.shown(quiet=as_json):
        return rollout.watch(host, started, progress)


def _settle(host: client.Client, started: client.Answer, *, as_json: bool) -> client.Answer:
    """Wait until as many instances are ready as are wanted; sizes that change roll out as a revision first."""
    progress = rollout.Progress(screen.to_user())
    with progress.shown(quiet=as_json):
        view = started
        while view.get("ready") != view.get("replicas") or view.get("phase") in ("pending", "rolling"):
            progress.step("scaling", f"{view.get('ready')} of {view.get('replicas')} ready")
            time.sleep(_LOOK_EVERY_S)
            view = host.agents.deployment(started["id"])
        progress.step("serving", f"{view.get('ready')} of {view.get('replicas')} ready")
        progress.end(ok=True)
    return view


def delete(
    agent: Agent,
    environment: Environment = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove an agent with its versions, secrets and history, or only its deployment in one environment."""
    what = f"{agent} in {environment}" if environment else f"{agent} everywhere"
    if not yes and not as_json and sys.stdin.isatty():
        typer.confirm(f"Delete {what}?", abort=True, err=True)
    with connect.open_client() as host:
        host.agents.delete(agent, environment=environment)
    screen.give({"deleted": agent, "environment": environment}, as_json=as_json, text=f"deleted {what}")
