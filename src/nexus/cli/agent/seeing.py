"""`nexus ai agent list`, `show`, `history` and `runs`: what there is and what happened."""

from typing import Annotated, Any

import typer
from rich.text import Text

from nexus.cli import connect, screen
from nexus.cli.options import Agent, Environment, Json


def register(app: typer.Typer) -> None:
    app.command("list")(list_agents)
    app.command("show")(show)
    app.command("history")(history)
    app.command("runs")(runs)


def list_agents(as_json: Json = False) -> None:
    """List agents and where they are deployed."""
    with connect.open_client() as host:
        found = host.agents.list()
    if as_json:
        screen.write_json(found)
        return
    rows: list[tuple[object, ...]] = []
    for agent in found:
        for entry in agent.get("deployments") or [{}]:
            ready = f"{entry['ready']}/{entry['replicas']}" if entry else ""
            phase, changed = screen.phase(entry.get("phase") or "-"), screen.ago(entry.get("updated_at"))
            version = entry.get("version") or agent.get("latest_version")
            rows.append((agent.get("name"), entry.get("environment"), version, phase, ready, changed))
    screen.table(
        ("AGENT", "ENVIRONMENT", "VERSION", "PHASE", "READY", "CHANGED"),
        rows,
        empty="no agents yet: nexus ai agent init my-agent",
    )


def show(agent: Agent, environment: Environment = None, as_json: Json = False) -> None:
    """Show an agent, its deployments and instances."""
    with connect.open_client() as host:
        found = host.agents.show(agent)
    if environment is not None:
        found["deployments"] = [entry for entry in found["deployments"] if entry["environment"] == environment]
    if as_json:
        screen.write_json(found)
        return
    screen.write(f"{found['name']}  tenant {found.get('tenant')}  latest version {found.get('latest_version') or '-'}")
    for entry in found["deployments"]:
        _show_deployment(entry)
    if not found["deployments"]:
        screen.note(f"not deployed: nexus ai agent deploy {agent} --env development")


def _show_deployment(entry: dict[str, Any]) -> None:
    screen.write("")
    scale = entry.get("autoscale") or {}
    automatic = f"{scale.get('min_replicas')} to {scale.get('max_replicas')}" if scale.get("enabled") else "off"
    screen.table(
        ("", entry.get("environment", "")),
        [
            ("phase", screen.phase(entry.get("phase"))),
            ("version", f"{entry.get('version')} (revision {entry.get('revision')})"),
            ("ready", f"{entry.get('ready')} of {entry.get('replicas')}"),
            ("size", f"cpu {entry.get('cpu') or 'no limit'}, memory {entry.get('memory') or 'no limit'}"),
            ("autoscale", automatic),
            ("url", entry.get("url")),
        ],
        empty="",
    )
    _show_problem(entry.get("problem"))
    instances = entry.get("instances") or []
    if not instances:
        return
    screen.write("")
    screen.table(
        ("INSTANCE", "PHASE", "VERSION", "PID", "RESTARTS", "RUNS", "CPU", "MEMORY", "UP", "NOTE"),
        [
            (
                one.get("id"), _phase(one), one.get("version"), one.get("pid"), one.get("restarts", 0),
                one.get("active_runs", 0), f"{one.get('cpu_s') or 0:.1f} s", screen.size(one.get("memory_bytes")),
                screen.ago(one.get("started_at")), _note(one),
            )
            for one in instances
        ],
        empty="",
    )  # fmt: skip


def _phase(instance: dict[str, Any]) -> Text:
    """With how many sessions an old version's instance still has, where each has a worker of its own."""
    shown, count = screen.phase(instance.get("phase")), instance.get("sessions")
    if instance.get("phase") == "draining" and count is not None:
        shown.append(f" ({count} session{'' if count == 1 else 's'})")
    return shown


def _note(instance: dict[str, Any]) -> str:
    problem = instance.get("problem") or {}
    if not problem and (end := instance.get("last_end")):
        return f"ended {screen.ago(end.get('at'))} ago: {end.get('cause') or end.get('detail')}"
    return str(problem.get("cause") or problem.get("detail") or instance.get("detail") or instance.get("step") or "")


def _show_problem(problem: dict[str, Any] | None) -> None:
    if not problem:
        return
    for name, value in (("problem", problem.get("detail")), ("cause", problem.get("cause")), ("next", problem.get("next_step"))):
        if value:
            screen.note(f"  {name}: {value}", "red" if name == "problem" else "")


def history(agent: Agent, environment: Environment = None, as_json: Json = False) -> None:
    """Show the revisions of an agent's deployments, newest first."""
    with connect.open_client() as host:
        places = (
            [environment] if environment else [entry["environment"] for entry in host.agents.show(agent).get("deployments") or ()]
        )
        found = [{"environment": place, **entry} for place in places for entry in host.agents.history(agent, environment=place)]
    if as_json:
        screen.write_json(found)
        return
    screen.table(
        ("REVISION", "ENVIRONMENT", "VERSION", "PHASE", "STRATEGY", "REPLICAS", "REASON", "BY", "AT"),
        [
            (
                entry.get("number"), entry.get("environment"), entry.get("version"), screen.phase(entry.get("phase")),
                entry.get("strategy") or "rolling", entry.get("replicas"),
                _reason(entry), entry.get("created_by"), screen.moment(entry.get("created_at")),
            )
            for entry in found
        ],
        empty=f"{agent} was never deployed",
    )  # fmt: skip


def _reason(entry: dict[str, Any]) -> str:
    problem, outcome = entry.get("problem") or {}, entry.get("outcome") or {}
    cause = problem.get("cause") or problem.get("detail")
    if not cause and outcome.get("decision"):
        cause = f"{outcome['decision']} by {outcome.get('by')}, {outcome.get('reason')}{_counts(outcome.get('numbers'))}"
    return f"{entry.get('reason') or ''}: {cause}" if cause else str(entry.get("reason") or "")


def _counts(numbers: dict[str, Any] | None) -> str:
    """The runs a decision was made on: ` (new 0 of 40 failed, stable 1 of 400)`."""
    if not numbers or not {"new", "stable"} <= numbers.keys():
        return ""
    new, old = numbers["new"], numbers["stable"]
    return f" (new {new.get('errors')} of {new.get('runs')} failed, stable {old.get('errors')} of {old.get('runs')})"


def runs(
    agent: Annotated[str | None, typer.Argument(help="Only this agent's.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many.")] = 20,
    as_json: Json = False,
) -> None:
    """List finished runs, newest first."""
    with connect.open_client() as host:
        found = host.agents.runs(agent, limit=limit)
    if as_json:
        screen.write_json(found)
        return
    screen.table(
        ("RUN", "AGENT", "MODE", "OUTCOME", "CODE", "TOKENS", "SECONDS", "SESSION", "AGE"),
        [
            (
                entry.get("id"), entry.get("agent"), entry.get("mode"), screen.phase(entry.get("outcome")), entry.get("code"),
                (entry.get("input_tokens") or 0) + (entry.get("output_tokens") or 0), f"{entry.get('duration_s') or 0:.2f}",
                entry.get("session_id"), screen.ago(entry.get("started_at")),
            )
            for entry in found
        ],
        empty="no runs yet",
    )  # fmt: skip
