"""Questions of a run to people, as they cross the door: what is sent, and what an answer becomes. Pure."""

import hashlib
import json
from typing import Any

from nexus.core import errors
from nexus.ports import run as ports
from nexus.worker import outputs


def name_of(question: ports.Question) -> str:
    """What a question is known by in every attempt: the author's name for it, else its words."""
    if question.name:
        return "n-" + hashlib.sha256(question.name.encode("utf-8", "replace")).hexdigest()[:32]
    said = json.dumps([question.text, question.choices, question.schema], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def render(question: ports.Question) -> bytes:
    """The body of the door's `asks` call. Raises `AgentFailed` (`agent.unserialisable`) for a default that is not JSON."""
    body: dict[str, Any] = {"question": question.text}
    if question.choices is not None:
        body["choices"] = list(question.choices)
    if question.schema is not None:
        body["schema"] = question.schema
    if question.timeout_s is not None:
        body["timeout_s"] = question.timeout_s
    if question.default:
        body["default"] = question.default[0]
    return outputs.encode(body).encode()


def read(question: ports.Question, found: dict[str, Any]) -> Any:
    """The answer of a settled question, or its default; `Exhausted` (`ask.timeout`) when there is neither."""
    if found["status"] == "answered":
        return found.get("answer")
    if question.default:
        return question.default[0]
    raise errors.Exhausted(
        f"nobody answered in time: {question.text[:200]}",
        code="ask.timeout",
        phase="run",
        cause=f"question {found['ask_id']} was open for {question.timeout_s or 0:g} s",
        next_step="ask with a longer timeout, or with a default",
    )


def unknown_outcome(key: str, attempt: int) -> ports.Question:
    """What a person is asked about a call that was sent and whose answer nobody saw (`hosting.tasks.unknown: ask`)."""
    kind, name, _ = key.split("/", 2)
    what = f"step {name!r}" if kind == "step" else "a model call"
    options: list[Any] = [{"enum": ["repeat", "fail"]}]
    if kind == "step":
        options.append({"type": "object", "required": ["result"], "properties": {"result": {}}, "additionalProperties": False})
    return ports.Question(
        text=f"Attempt {attempt} was lost in {what}, and nobody knows whether it was done. Repeat it, fail"
        + (', or give its result as {"result": …}?' if kind == "step" else "?"),
        schema={"anyOf": options},
        name=f"unknown {key} {attempt}",
    )


def given_up(key: str) -> errors.Conflict:
    return errors.Conflict(
        "an earlier attempt made this call and its outcome is not known",
        code="step.unknown_outcome",
        phase="run",
        cause=f"a person decided not to repeat {key.rpartition('/')[0]}",
        next_step="find out what came of it, then submit a new task",
    )
