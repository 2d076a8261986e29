"""`nexus ai agent task replay`: run a finished task again against its recording and show the first difference."""

from typing import Annotated, Any

import typer

from nexus.cli import connect, screen
from nexus.cli.options import Environment, Json
from nexus.client import replay_operations
from nexus.core import errors

TaskId = Annotated[str, typer.Argument(help="Id of a finished task (task_…).", show_default=False)]
DIFFERENT = 10


def register(task: typer.Typer) -> None:
    task.command("replay")(replay)


def replay(
    task_id: TaskId,
    version: Annotated[str | None, typer.Option("--version", help="Another version of the agent.")] = None,
    environment: Environment = None,
    timeout: Annotated[float | None, typer.Option("--timeout", min=0, help="The longest the run may take, in seconds.")] = None,
    as_json: Json = False,
) -> None:
    """Run a task again, offline: its recording answers every model call, step and question. Exit code 10 when it differs.

    It runs in an instance of its own without network, made for it and deleted again; with --env where that deployment runs.
    """
    scratch = replay_operations.scratch()
    with connect.open_client() as host:
        try:
            report = host.agents.replay(
                task_id, version=version, environment=environment, scratch_environment=scratch, timeout=timeout
            )
        except KeyboardInterrupt:
            _remove(host, task_id, scratch)
            raise
    if as_json:
        screen.write_json(report)
    else:
        _show(report)
    if not report["same"]:
        raise typer.Exit(DIFFERENT)


def _show(report: Any) -> None:
    before, now = report.get("recorded_version"), report.get("replayed_version")
    versions = before if before == now else f"{before} then, {now} now"
    screen.note(
        f"replay {report['replay_id']}: {report['replayed_calls']} of {report['recorded_calls']} recorded calls, {versions}"
    )
    found = report.get("difference")
    if found is None:
        screen.write("same")
        return
    what = {"model": "model call", "ask": "question", "end": "end of the run"}.get(found["kind"], found["kind"])
    screen.write(f"different: call {found['index']}, a {what}" if found["kind"] != "end" else "different: the end of the run")
    if found.get("recorded") is None:
        screen.write("nothing was recorded any more")
    if found.get("asked") is None:
        screen.write("it was not asked any more")
    for line in found.get("diff") or []:
        screen.write(line)


def _remove(host: Any, task_id: str, environment: str) -> None:
    try:
        host.agents.delete(str(host.agents.status(task_id)["agent"]), environment=environment)
    except errors.NexusError:
        return
