"""`nexus schedules …`: tasks that are submitted by the clock."""

from typing import Annotated

import typer

from nexus.cli import connect, screen
from nexus.cli.agent import inputs
from nexus.cli.options import Agent, Environment, Json

Name = Annotated[str, typer.Argument(help="Name of the schedule.", show_default=False)]


def register(app: typer.Typer) -> None:
    group = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Tasks that are submitted by the clock.")
    for name, command in (
        ("create", create), ("list", list_schedules), ("show", show), ("pause", pause), ("resume", resume), ("delete", delete),
    ):  # fmt: skip
        group.command(name)(command)
    app.add_typer(group, name="schedules")


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
    screen.give(made, as_json=as_json, text=f"{made['name']} fires next at {screen.moment(made.get('next_at'))}")


def list_schedules(agent: Annotated[str | None, typer.Argument(help="Only this agent's.")] = None, as_json: Json = False) -> None:
    """List schedules."""
    with connect.open_client() as host:
        found = host.schedules.list(agent)
    if as_json:
        screen.write_json(found)
        return
    screen.table(
        ("SCHEDULE", "AGENT", "WHEN", "ZONE", "NEXT", "FIRED", "MISSED"),
        [
            (
                each.get("name"),
                each.get("agent"),
                each.get("cron") or "once",
                each.get("timezone"),
                screen.moment(each.get("next_at")) if each.get("active") else "paused",
                each.get("fired"),
                each.get("missed"),
            )
            for each in found
        ],
        empty="no schedules",
    )


def show(name: Name, as_json: Json = False) -> None:
    """Show a schedule and its next times."""
    with connect.open_client() as host:
        found = host.schedules.show(name)
    if as_json:
        screen.write_json(found)
        return
    rows = [
        (key, found.get(key)) for key in ("agent", "environment", "cron", "timezone", "catch_up", "active", "fired", "missed")
    ]
    rows += [("next", screen.moment(at)) for at in found.get("upcoming") or []]
    rows.append(("last task", found.get("last_task_id")))
    screen.table(("", name), rows, empty="")


def pause(name: Name, as_json: Json = False) -> None:
    """Let a schedule rest."""
    with connect.open_client() as host:
        found = host.schedules.pause(name)
    screen.give(found, as_json=as_json, text=f"{name} is paused")


def resume(name: Name, as_json: Json = False) -> None:
    """Let a schedule go on from now."""
    with connect.open_client() as host:
        found = host.schedules.resume(name)
    screen.give(found, as_json=as_json, text=f"{name} fires next at {screen.moment(found.get('next_at'))}")


def delete(name: Name, as_json: Json = False) -> None:
    """Delete a schedule; its tasks stay."""
    with connect.open_client() as host:
        host.schedules.delete(name)
    screen.give({"deleted": name}, as_json=as_json, text=f"{name} is deleted")
