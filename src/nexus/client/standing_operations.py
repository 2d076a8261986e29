"""Operations on what submits tasks by itself: schedules (the clock) and triggers (webhooks, queue messages); see `operations`."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from nexus.client import answers, paths
from nexus.client.calls import Call, Operation, ask


class Standing:
    """What can be done with either by its name. `kind` is its place under `/v1`."""

    def __init__(self, kind: str) -> None:
        self._path = f"/v1/{kind}"

    def list(self, agent: str | None = None) -> "Operation[list[answers.Answer]]":
        """By name; with `agent` only those of this agent."""
        reply = yield from ask(Call(method="GET", path=self._path, query={"agent": agent}))
        return [answers.Answer(entry) for entry in reply.items()]

    def show(self, name: str) -> Operation[answers.Answer]:
        """As it is now; a schedule with its next five times."""
        reply = yield from ask(Call(method="GET", path=self._of(name)))
        return answers.Answer(reply.object())

    def pause(self, name: str) -> Operation[answers.Answer]:
        """Let it rest. A paused webhook is answered with 404; messages of a queue wait in their broker."""
        reply = yield from ask(Call(method="POST", path=self._of(name) + "/pause"))
        return answers.Answer(reply.object())

    def resume(self, name: str) -> Operation[answers.Answer]:
        """Go on from now; what a schedule would have done in between is not made up for."""
        reply = yield from ask(Call(method="POST", path=self._of(name) + "/resume"))
        return answers.Answer(reply.object())

    def delete(self, name: str) -> Operation[None]:
        """Its tasks stay."""
        yield from ask(Call(method="DELETE", path=self._of(name)))

    def create(self, body: Mapping[str, Any]) -> Operation[answers.Answer]:
        reply = yield from ask(Call(method="POST", path=self._path, json=dict(body)))
        return answers.Answer(reply.object())

    def _of(self, name: str) -> str:
        return f"{self._path}/{quote(name, safe='')}"


SCHEDULES, TRIGGERS = Standing("schedules"), Standing("triggers")


def create_schedule(
    name: str,
    agent: str,
    input: Any = None,
    *,
    cron: str | None = None,
    at: str | None = None,
    timezone: str | None = None,
    catch_up: str | None = None,
    environment: str | None = None,
    task: Mapping[str, Any] | None = None,
) -> Operation[answers.Answer]:
    """Submit a task again and again (`cron`, five fields, in `timezone`) or once (`at`, RFC 3339). `task` holds further
    fields of `submit`."""
    body: dict[str, Any] = {"name": name, "agent": agent, "task": {"input": input, **(task or {})}}
    more = paths.given(cron=cron, at=at, timezone=timezone, catch_up=catch_up, environment=environment)
    return SCHEDULES.create(body | more)


def create_trigger(
    name: str,
    agent: str,
    *,
    hook: Mapping[str, Any] | None = None,
    queue: Mapping[str, Any] | None = None,
    environment: str | None = None,
    task: Mapping[str, Any] | None = None,
) -> Operation[answers.Answer]:
    """`hook` (`{"scheme": "github"}`) or `queue` (`{"url": "redis://…", "name": "jobs"}`); `task` holds further fields of
    `submit`. The answer of a hook has its `url`, and its `secret`, which is shown only here."""
    body: dict[str, Any] = {"name": name, "agent": agent, "task": dict(task or {})}
    more = paths.given(
        hook=None if hook is None else dict(hook), queue=None if queue is None else dict(queue), environment=environment
    )
    return TRIGGERS.create(body | more)
