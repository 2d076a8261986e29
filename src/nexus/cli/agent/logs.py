"""`nexus ai agent logs`: an agent's log lines, filtered, coloured or as JSON lines."""

import contextlib
import math
import time
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from nexus.cli import connect, screen
from nexus.cli.options import Agent, Environment, Json
from nexus.core import errors
from nexus.kit import quantity

LEVELS = ("debug", "info", "warning", "error", "critical")
_STYLES = {"debug": "dim", "info": "cyan", "warning": "yellow", "error": "red", "critical": "bold red"}


def register(app: typer.Typer) -> None:
    app.command("logs")(logs)


def logs(
    agent: Agent,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing new lines.")] = False,
    level: Annotated[str | None, typer.Option("--level", "-l", help="At least debug, info, warning, error or critical.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="From 10m, 1h, 2d ago, or from a time such as 2026-11-20T06:00.")
    ] = None,
    run: Annotated[str | None, typer.Option("--run", help="Only this run's lines.")] = None,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Only this session's lines.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Only the last so many lines.")] = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Show what an agent wrote, oldest first."""
    at = None if since is None else parse_since(since, time.time())
    wanted = None if level is None else parse_level(level)
    with (
        connect.open_client() as host,
        host.agents.logs(
            agent, follow=follow, level=wanted, since=at, run=run, session=session, limit=limit, environment=environment
        ) as stream,
    ):
        console = screen.to_output()
        for line in stream:
            if as_json:
                screen.write_json(line, indent=None)
            else:
                console.print(render_line(line))


def render_line(line: dict[str, Any]) -> Text:
    level = str(line.get("level") or "info")
    text = Text(screen.moment(line.get("at")), style="dim")
    text.append(f" {screen.clean(level).upper():<8}", _STYLES.get(level, ""))
    text.append(screen.clean(line.get("message", "")))
    for name in ("run_id", "session_id"):
        if line.get(name):
            text.append(f" {name.removesuffix('_id')}={screen.clean(line[name])}", "dim")
    return text


def parse_since(value: str, now: float) -> float:
    """Seconds since the epoch from `1h` (ago) or an ISO 8601 time (this machine's zone unless it names one)."""
    with contextlib.suppress(ValueError, OverflowError):
        if math.isfinite(seconds := quantity.parse_duration(value)):
            return now - seconds
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError, OSError):
        raise errors.Invalid(
            f"--since {value[:60]!r} is neither a length of time nor a time",
            code="since.invalid",
            next_step="write 10m, 1h, 2d or 2026-11-20T06:00",
        ) from None


def parse_level(value: str) -> str:
    level = {"warn": "warning", "err": "error", "fatal": "critical"}.get(value.lower(), value.lower())
    if level not in LEVELS:
        raise errors.Invalid(f"{value!r} is not a level", code="level.invalid", next_step=f"use one of {', '.join(LEVELS)}")
    return level
