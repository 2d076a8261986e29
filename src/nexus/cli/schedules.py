"""`nexus schedules …`: tasks that are submitted by the clock."""

from typing import Annotated, Any

import typer

from nexus.cli import connect, screen, standing
from nexus.cli.agent import inputs
from nexus.cli.options import Agent, Environment, Json

Name = Annotated[str, typer.Argument(help="Name of the schedule.", show_default=False)]


def register(app: typer.Typer) -> None:
    kind = standing.Kind(
        noun="schedule",
        about="Tasks that are submitted by the clock.",
        create=create,
        columns=("SCHEDULE", "AGENT", "WHEN", "ZONE", "NEXT", "FIRED", "MISSED"),
        row=_row,
        details=_details,
        does=_next,
        pause="Let a schedule rest.",
        resume="Let a schedule go on from now.",
    )
    standing.register(app, kind)


def create(
    name: Name,
    agent: Agent,
    given: inputs.Input = None,
    file: inputs.File = None,
    data: inputs.Data = None,
    cron: Annotated[str | None, typer.Option("--cron", help='Five fields: "30 7 * * mon-fri".')] = None,
    at: Annotated[str | None, typer.Option("--at", help="Once: 2026-12-24T18:00:00+01:00.")] = None,
    timezone: Annotated[str | None, typer.Option("--timezone", help="Zone of the cron fields: Europe/Berlin.")] = None,
    catch_up: Annotated[str | None, typer.Option("--catch-up", help="Times the host was not up for: skip, last or all.")] = None,
    environment: Environment = None,
    priority: Annotated[int | None, typer.Option("--priority", "-p", help="Higher starts earlier (-1000 to 1000).")] = None,
    webhook: Annotated[str | None, typer.Option("--webhook", help="URL that receives each result.")] = None,
    as_json: Json = False,
) -> None:
    """Submit a task again and again, or once at a later time."""
    value = None if given is None and file is None and data is None else inputs.read(given, file, data)
    more = {name: entry for name, entry in (("priority", priority), ("webhook", webhook)) if entry is not None}
    with connect.open_client() as host:
        made = host.schedules.create(
            name, agent, value, cron=cron, at=at, timezone=timezone, catch_up=catch_up, environment=environment, task=more
        )
    screen.give(made, as_json=as_json, text=f"{made['name']} {_next(made)}")


def _row(each: standing.Entry) -> tuple[Any, ...]:
    upcoming = screen.moment(each.get("next_at")) if each.get("active") else "paused"
    when = (each.get("cron") or "once", each.get("timezone"), upcoming)
    return (each.get("name"), each.get("agent"), *when, each.get("fired"), each.get("missed"))


def _details(found: standing.Entry) -> list[tuple[str, Any]]:
    known = ("agent", "environment", "cron", "timezone", "catch_up", "active", "fired", "missed")
    times = [("next", screen.moment(at)) for at in found.get("upcoming") or []]
    return [*((key, found.get(key)) for key in known), *times, ("last task", found.get("last_task_id"))]


def _next(found: standing.Entry) -> str:
    return f"fires next at {screen.moment(found.get('next_at'))}"
