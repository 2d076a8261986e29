"""`nexus ai agent task …` for what waits or has died: pause, resume, priority, requeue, purge, and whole batches."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nexus.cli import connect, screen
from nexus.cli.options import Agent, Environment, Json
from nexus.core import errors

TaskId = Annotated[str, typer.Argument(help="Id of the task (task_…).", show_default=False)]
TaskIds = Annotated[list[str] | None, typer.Argument(help="Ids of tasks (task_…).", show_default=False)]
OfAgent = Annotated[str | None, typer.Option("--agent", help="All dead letters of this agent.")]


def register(task: typer.Typer) -> None:
    for name, command in (
        ("pause", pause), ("resume", resume), ("priority", priority), ("requeue", requeue), ("purge", purge), ("batch", batch),
    ):  # fmt: skip
        task.command(name)(command)


def pause(task_id: TaskId, as_json: Json = False) -> None:
    """Let a task rest; an attempt that runs is ended and begins again when it is resumed."""
    with connect.open_client() as host:
        task = host.agents.pause(task_id)
    screen.give(task.view, as_json=as_json, text=f"{task_id} {task['status']}")


def resume(task_id: TaskId, as_json: Json = False) -> None:
    """Let a paused task go on."""
    with connect.open_client() as host:
        task = host.agents.resume(task_id)
    screen.give(task.view, as_json=as_json, text=f"{task_id} {task['status']}")


def priority(
    task_id: TaskId,
    value: Annotated[int, typer.Argument(min=-1000, max=1000, help="Higher starts earlier within its agent.")],
    as_json: Json = False,
) -> None:
    """Change the priority of a task."""
    with connect.open_client() as host:
        task = host.agents.set_priority(task_id, value)
    screen.give(task.view, as_json=as_json, text=f"{task_id} priority {task.view.get('priority')}")


def requeue(task_ids: TaskIds = None, agent: OfAgent = None, environment: Environment = None, as_json: Json = False) -> None:
    """Submit finished tasks, or an agent's dead letters, again as new tasks."""
    _names_something(task_ids, agent)
    with connect.open_client() as host:
        made = host.agents.requeue(task_ids, agent=agent, environment=environment)
    screen.give([task.view for task in made], as_json=as_json, text="\n".join(str(task.task_id) for task in made))
    if not as_json:
        screen.note(f"{len(made)} tasks queued again")


def purge(
    task_ids: TaskIds = None,
    agent: OfAgent = None,
    environment: Environment = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Delete finished tasks, or an agent's dead letters, with their events."""
    _names_something(task_ids, agent)
    if not yes and not as_json and screen.is_interactive():
        typer.confirm(f"Delete {f'all dead letters of {agent}' if agent else f'{len(task_ids or [])} tasks'}?", abort=True)
    with connect.open_client() as host:
        gone = host.agents.purge(task_ids, agent=agent, environment=environment)
    screen.give({"deleted": gone}, as_json=as_json, text=f"{gone} tasks deleted")


def batch(
    agent: Agent,
    file: Annotated[str, typer.Argument(help='File of JSON lines, one task each ({"input": …}); - for standard input.')],
    environment: Environment = None,
    key: Annotated[str | None, typer.Option("--idempotency-key", help="The same key twice is one batch.")] = None,
    as_json: Json = False,
) -> None:
    """Submit up to 10,000 tasks in one commit."""
    tasks = _read_lines(file)
    with connect.open_client() as host:
        made = host.agents.submit_batch(agent, tasks, environment=environment, idempotency_key=key)
    screen.give([task.view for task in made], as_json=as_json, text="\n".join(str(task.task_id) for task in made))
    if not as_json:
        screen.note(f"{len(made)} tasks accepted")


def _read_lines(file: str) -> list[dict[str, Any]]:
    text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    tasks = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise errors.Invalid(f"line {number} is not JSON", code="input.invalid_json", cause=str(error)) from error
        tasks.append(value if isinstance(value, dict) and "input" in value else {"input": value})
    return tasks


def _names_something(task_ids: list[str] | None, agent: str | None) -> None:
    if bool(task_ids) == bool(agent):
        raise errors.Invalid("name either task ids or --agent", code="usage.invalid", next_step="nexus ai agent task list --dead")
