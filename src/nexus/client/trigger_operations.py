"""Operations on triggers: webhooks and queue messages that become tasks; see `operations`."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from nexus.client import answers, paths
from nexus.client.calls import Call, Operation, ask


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
    body |= paths.given(
        hook=None if hook is None else dict(hook), queue=None if queue is None else dict(queue), environment=environment
    )
    reply = yield from ask(Call(method="POST", path="/v1/triggers", json=body))
    return answers.Answer(reply.object())


def list_triggers(agent: str | None = None) -> Operation[list[answers.Answer]]:
    reply = yield from ask(Call(method="GET", path="/v1/triggers", query={"agent": agent}))
    return [answers.Answer(entry) for entry in reply.items()]


def show_trigger(name: str) -> Operation[answers.Answer]:
    reply = yield from ask(Call(method="GET", path=_trigger(name)))
    return answers.Answer(reply.object())


def pause_trigger(name: str) -> Operation[answers.Answer]:
    reply = yield from ask(Call(method="POST", path=_trigger(name) + "/pause"))
    return answers.Answer(reply.object())


def resume_trigger(name: str) -> Operation[answers.Answer]:
    reply = yield from ask(Call(method="POST", path=_trigger(name) + "/resume"))
    return answers.Answer(reply.object())


def delete_trigger(name: str) -> Operation[None]:
    """Its tasks stay."""
    yield from ask(Call(method="DELETE", path=_trigger(name)))


def _trigger(name: str) -> str:
    return f"/v1/triggers/{quote(name, safe='')}"
