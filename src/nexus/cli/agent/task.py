"""`nexus ai agent submit` and `task …`: asynchronous runs."""

import json
from typing import Annotated

import typer

from nexus import client
from nexus.cli import connect, screen
from nexus.cli.agent import inputs, running, task_asks, task_queue, task_replay
from nexus.cli.options import Agent, Environment, Json
from nexus.core import errors
from nexus.wire import problem

TaskId = Annotated[str, typer.Argument(help="Id of the task (task_…).", show_default=False)]


def register(app: typer.Typer) -> None:
    app.command("submit")(submit)
    task = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look after tasks.")
    for name, command in (
        ("status", status), ("wait", wait), ("result", wait), ("events", events), ("cancel", cancel), ("list", list_tasks),
    ):  # fmt: skip
        task.command(name)(command)
    task_queue.register(task)
    task_asks.register(task)
    task_replay.register(task)
    app.add_typer(task, name="task")


def submit(
    agent: Agent,
    given: inputs.Input = None,
    file: inputs.File = None,
    data: inputs.Data = None,
    context: inputs.Context = None,
    session: inputs.Session = None,
    environment: Environment = None,
    webhook: Annotated[str | None, typer.Option("--webhook", help="URL that receives the result.")] = None,
    key: Annotated[str | None, typer.Option("--idempotency-key", help="The same key twice is one task.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result and print it.")] = False,
    priority: Annotated[int | None, typer.Option("--priority", "-p", help="Higher starts earlier (-1000 to 1000).")] = None,
    delay: Annotated[str | None, typer.Option("--delay", help="Start after so long: 30s, 2h.")] = None,
    run_at: Annotated[str | None, typer.Option("--run-at", help="Start then: 2026-12-24T18:00:00+01:00.")] = None,
    queue_timeout: Annotated[str | None, typer.Option("--queue-timeout", help="Fail if not begun within: 10m.")] = None,
    run_timeout: Annotated[str | None, typer.Option("--run-timeout", help="The longest one attempt may take.")] = None,
    total_timeout: Annotated[str | None, typer.Option("--total-timeout", help="Fail if not over within.")] = None,
    attempts: Annotated[int | None, typer.Option("--max-attempts", min=1, max=50, help="How often it is tried.")] = None,
    as_json: Json = False,
) -> None:
    """Hand over a task and return at once with its id."""
    value, said = inputs.read(given, file, data), inputs.read_context(context)
    with connect.open_client() as host:
        task = host.agents.submit(
            agent,
            value,
            webhook=webhook,
            context=said,
            session_id=session,
            environment=environment,
            idempotency_key=key,
            priority=priority,
            delay=delay,
            run_at=run_at,
            queue_timeout=queue_timeout,
            run_timeout=run_timeout,
            total_timeout=total_timeout,
            max_attempts=attempts,
        )
        if wait:
            screen.note(f"task {task.task_id}")
            _finish(host, task.task_id, None, as_json=as_json)
            return
    screen.give(task.view, as_json=as_json, text=f"{task.task_id} {task.status}")
    if not as_json:
        screen.note(f"next: nexus ai agent task wait {task.task_id}")


def status(task_id: TaskId, as_json: Json = False) -> None:
    """Show how far a task is, and what it asks."""
    with connect.open_client() as host:
        task = host.agents.status(task_id)
        asked = host.agents.asks(task_id=task_id) if task.view.get("asking") and not as_json else []
    if as_json:
        screen.write_json(task.view)
        return
    rows = [(name, task.view.get(name)) for name in ("status", "progress", "message", "agent", "environment", "attempt")]
    rows += [
        (name.removesuffix("_at"), screen.moment(task.view.get(name))) for name in ("created_at", "started_at", "finished_at")
    ]
    rows += [("asks", each.get("question")) for each in asked if each.get("status") == "open"]
    if task.view.get("output") is not None:
        rows.append(("output", screen.as_text(task.view["output"])))
    if isinstance(task.view.get("webhook"), dict):
        rows.append(("webhook", ", ".join(f"{name} {value}" for name, value in task.view["webhook"].items())))
    if isinstance(task.view.get("error"), dict):
        rows.append(("error", task.view["error"].get("cause") or task.view["error"].get("detail")))
    screen.table(("", task_id), rows, empty="")


def wait(
    task_id: TaskId,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, help="Give up after this many seconds (exit code 9).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Wait until a task is over and print its output; a failed task is an error."""
    with connect.open_client() as host:
        _finish(host, task_id, timeout, as_json=as_json)


def _finish(host: client.Client, task_id: str, timeout: float | None, *, as_json: bool) -> None:
    task = host.agents.wait(task_id, timeout)
    if task["status"] == "completed":
        screen.give(task.view, as_json=as_json, text=screen.as_text(task.view.get("output")))
        return
    told = task.view.get("error")
    if isinstance(told, dict) and told.get("code"):
        raise problem.parse(told)
    raise errors.AgentFailed(
        f"task {task_id} was {task['status']}", code=f"run.{task['status']}", next_step=f"nexus ai agent task events {task_id}"
    )


def events(
    task_id: TaskId,
    after: Annotated[str | None, typer.Option("--after", help="Begin after the event with this id.")] = None,
    as_json: Json = False,
) -> None:
    """Show a task's events as they happen, to the last. With --json each is one line."""
    with connect.open_client() as host, host.agents.events(task_id, after) as stream:
        for chunk in stream:
            if as_json:
                screen.write_json({"id": chunk.id, "event": chunk.event, "data": dict(chunk.data)}, indent=None)
                continue
            if chunk.event == "progress":
                words = running.progress(chunk.data)
            else:
                words = chunk.text or (json.dumps(dict(chunk.data), default=str) if chunk.data else "")
            screen.write(f"{chunk.id or '-':>5}  {chunk.event:<15} {words}")


def _percent(value: object) -> str:
    return f"{value:g} %" if isinstance(value, int | float) else "-"


def cancel(task_id: TaskId, as_json: Json = False) -> None:
    """Stop a task."""
    with connect.open_client() as host:
        task = host.agents.cancel(task_id)
    screen.give(task.view, as_json=as_json, text=f"{task_id} {task['status']}")


def list_tasks(
    agent: Annotated[str | None, typer.Argument(help="Only this agent's.")] = None,
    state: Annotated[
        str | None, typer.Option("--status", help="pending, running, waiting, completed, failed or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=500, help="How many.")] = 20,
    dead: Annotated[bool, typer.Option("--dead", help="Only dead letters: failed for good, not queued again since.")] = False,
    as_json: Json = False,
) -> None:
    """List tasks, newest first."""
    with connect.open_client() as host:
        found = host.agents.tasks(agent, status=state, limit=limit, dead=dead)
    if as_json:
        screen.write_json(found)
        return
    screen.table(
        ("TASK", "AGENT", "STATUS", "PROGRESS", "ATTEMPT", "AGE"),
        [
            (
                task.get("task_id"),
                task.get("agent"),
                screen.phase(task.get("status")),
                _percent(task.get("progress")),
                task.get("attempt"),
                screen.ago(task.get("created_at")),
            )
            for task in found
        ],
        empty="no tasks",
    )
