"""Operations on many tasks, on tasks in the queue, on their questions and on dead letters; see `operations`."""

from collections.abc import Mapping, Sequence
from typing import Any

from nexus.client import answers, paths
from nexus.client.calls import Call, Operation, ask
from nexus.wire import headers


def submit_batch(
    name: str,
    tasks: Sequence[Mapping[str, Any]],
    *,
    environment: str | None = None,
    idempotency_key: str | None = None,
) -> Operation[list[answers.Answer]]:
    """Hand over up to 10,000 tasks in one commit: `[{"input": …, "priority": …}, …]`, fields as of `submit`."""
    sent = paths.run_headers(None, environment)
    if idempotency_key is not None:
        sent[headers.IDEMPOTENCY_KEY] = paths.header_text(idempotency_key, "idempotency key")
    body = {"tasks": [dict(task) for task in tasks]}
    reply = yield from ask(Call(method="POST", path=paths.agent(name, "tasks:batch"), json=body, headers=sent))
    return [answers.submitted(entry) for entry in reply.items()]


def pause(task_id: str) -> Operation[answers.Answer]:
    """Let a task rest until `resume`; an attempt that runs is ended and begins again then."""
    reply = yield from ask(Call(method="POST", path=paths.task(task_id) + "/pause"))
    return answers.task_status(reply.object())


def resume(task_id: str) -> Operation[answers.Answer]:
    reply = yield from ask(Call(method="POST", path=paths.task(task_id) + "/resume"))
    return answers.task_status(reply.object())


def set_priority(task_id: str, priority: int) -> Operation[answers.Answer]:
    """A higher priority starts earlier within its agent."""
    reply = yield from ask(Call(method="PATCH", path=paths.task(task_id), json={"priority": priority}))
    return answers.task_status(reply.object())


def asks(agent: str | None = None, *, task_id: str | None = None) -> Operation[list[answers.Answer]]:
    """Questions that wait for an answer, oldest first; with `task_id` all that this task asked. `url` is the link to answer."""
    if task_id is not None:
        reply = yield from ask(Call(method="GET", path=paths.task(task_id) + "/asks"))
    else:
        reply = yield from ask(Call(method="GET", path="/v1/asks", query={"agent": agent}))
    return [answers.Answer(entry) for entry in reply.items()]


def answer(task_id: str, value: Any, *, ask_id: str | None = None) -> Operation[answers.Answer]:
    """Answer a task's question; it goes on. `ask_id` may be left out when the task asks one thing."""
    body = {"answer": value, **paths.given(ask_id=ask_id)}
    reply = yield from ask(Call(method="POST", path=paths.task(task_id) + "/answer", json=body))
    return answers.Answer(reply.object())


def requeue(
    task_ids: Sequence[str] | None = None, *, agent: str | None = None, environment: str | None = None
) -> Operation[list[answers.Answer]]:
    """New tasks with the input of these finished ones, or of all dead letters of an agent. Twice makes them once."""
    body = paths.given(task_ids=None if task_ids is None else list(task_ids), agent=agent, environment=environment)
    reply = yield from ask(Call(method="POST", path="/v1/dead-letters/requeue", json=body))
    return [answers.submitted(entry) for entry in reply.object().get("tasks", [])]


def purge(task_ids: Sequence[str] | None = None, *, agent: str | None = None, environment: str | None = None) -> Operation[int]:
    """Delete these finished tasks, or all dead letters of an agent. How many went."""
    body = paths.given(task_ids=None if task_ids is None else list(task_ids), agent=agent, environment=environment)
    reply = yield from ask(Call(method="POST", path="/v1/dead-letters/purge", json=body))
    return int(reply.object().get("deleted", 0))
