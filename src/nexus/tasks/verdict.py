"""What an attempt's end means: finished for good, lost on the way, or never begun. Pure; the dispatcher acts on it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nexus.core import errors, ids
from nexus.core.phases import RunPhase
from nexus.kit import backoff, sse
from nexus.ports import task_store
from nexus.wire import problem as problems
from nexus.wire import runs

# Answers by which a gateway says that no agent has seen the run; the task waits. Anything else is the agent's own answer.
_NOT_BEGUN = frozenset({401, 403, 404, 408, 421, 429, 503})
_LOST = frozenset({502})
MAX_MESSAGE = 2000
MOST_ASKS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The terminal result. `data` is the terminal event's JSON; `output`, `metadata` and `error` are JSON texts."""

    phase: RunPhase
    data: str
    output: str | None = None
    metadata: str | None = None
    error: str | None = None

    problem: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How long an attempt may take, and the error when it does."""

    seconds: float
    error: errors.NexusError


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """It began and nobody knows how it ended; another attempt may follow."""

    problem: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotBegun:
    """Nothing was run; the task waits without using up an attempt."""

    problem: Mapping[str, Any]
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """It asked people and ended without a result; `asks` are the ids of its questions."""

    asks: tuple[str, ...]


Verdict = Finished | Lost | NotBegun | Waiting


def judge_terminal(event: sse.Event) -> Verdict:
    """The verdict of a terminal event. A cancellation nobody asked for (an instance that stops) counts as lost."""
    data = _object(event.data)
    if event.name == runs.RUN_COMPLETED:
        metadata = data.get("metadata")
        return Finished(
            phase=RunPhase.COMPLETED,
            data=text_of(data),
            output=text_of(data.get("output")),
            metadata=text_of(metadata if isinstance(metadata, dict) else {}),
        )
    problem = _problem_in(data)
    if event.name == runs.RUN_CANCELLED:
        return Lost(problem=problem or _problem(errors.Unavailable("the instance cancelled the run", code="run.cancelled")))
    problem = problem or _problem(errors.AgentFailed("the agent failed and gave no reason"))
    if problem.get("kind") == errors.Unavailable.kind or problem.get("code") == "run.cancelled":
        return Lost(problem=problem)
    return failed(problem)


def judge_waiting(event: sse.Event) -> Verdict:
    """The verdict of `run.waiting`."""
    told = _object(event.data).get("asks")
    asked = (
        tuple(ask["ask_id"] for ask in told if isinstance(ask, dict) and ids.is_id(str(ask.get("ask_id")), ids.ASK))
        if isinstance(told, list)
        else ()
    )
    if not asked:
        return failed(_problem(errors.AgentFailed("the run waits for nobody", code="agent.bad_response")))
    return Waiting(asks=asked[:MOST_ASKS])


def judge_answer(status: int, *, content_type: str, body: bytes, retry_after: str | None) -> Verdict:
    """The verdict of an answer that is no event stream."""
    data = _object(body.decode("utf-8", "replace"))
    if status == 200:
        if "output" not in data:
            return failed(_problem(errors.AgentFailed("the agent's answer holds no output", code="agent.bad_response")))
        return judge_terminal(sse.Event(data=text_of(data), name=runs.RUN_COMPLETED))
    problem = data if "code" in data else _problem(
        errors.Unavailable(f"the gateway answered {status}", code="upstream.failed", cause=content_type or None)
    )  # fmt: skip
    if status in _NOT_BEGUN:
        return NotBegun(problem=problem, retry_after_s=_seconds(retry_after or problem.get("retry_after_s")))
    if status in _LOST:
        return Lost(problem=problem)
    return failed(problem)


def failed(problem: Mapping[str, Any]) -> Finished:
    text = text_of(problem)
    return Finished(phase=RunPhase.FAILED, data=text, error=text, problem=problem)


def is_worth_another(ending: Finished, claim: task_store.Claim) -> bool:
    """Whether the agent's retry policy wants this failure tried again while attempts are left."""
    kinds = claim.retry.kinds if claim.retry is not None else ()
    return ending.phase is RunPhase.FAILED and ending.problem.get("kind") in kinds and claim.strikes + 1 < claim.max_attempts


def pauses_of(claim: task_store.Claim, default: backoff.Backoff) -> backoff.Backoff:
    """The pauses between attempts: the agent's own, else the host's."""
    if (retry := claim.retry) is None:
        return default
    return backoff.Backoff(
        first_s=retry.first_s, longest_s=retry.longest_s, factor=retry.factor, least_s=min(default.least_s, retry.first_s)
    )


def decide_limit(claim: task_store.Claim, *, longest_s: float) -> Limit:
    """The nearest of: the attempt's own time-out, what is left of the task's total time, the host's longest."""
    seconds = min(longest_s, claim.run_timeout_s or longest_s)
    if claim.remaining_s is not None and claim.remaining_s < seconds:
        error = errors.Exhausted(
            "the task was not over within its total time", code="task.deadline", next_step="give it a longer total_timeout"
        )
        return Limit(seconds=max(0.001, claim.remaining_s), error=error)
    return Limit(seconds=seconds, error=errors.Exhausted(f"the run took longer than {seconds:g} s", code="run.timeout"))


def cancelled() -> Finished:
    problem = _problem(errors.Conflict("the task was cancelled", code="run.cancelled"))
    return Finished(phase=RunPhase.CANCELLED, data=text_of(problem), error=text_of(problem))


def exhausted(attempts: int, last: Mapping[str, Any]) -> Finished:
    """No attempt is left; the last loss is the cause."""
    error = errors.Unavailable(
        f"the task was lost in {attempts} attempts",
        code="task.attempts_exhausted",
        cause=f"{last.get('code', '')}: {last.get('detail', '')}"[:MAX_MESSAGE],
        next_step="look at the agent's log around the attempts, then submit the task again",
    )
    return failed(_problem(error))


def judge_error(error: errors.NexusError) -> Verdict:
    """A connection that could not be made is no attempt; one that broke is a lost one."""
    problem = _problem(error)
    return NotBegun(problem=problem) if error.code == "gateway.unreachable" else Lost(problem=problem)


def event_of(event: sse.Event, seq: int) -> task_store.TaskEvent:
    """The event as it is stored; NUL cannot be stored in a text and never stands in valid JSON."""
    return task_store.TaskEvent(seq=seq, name=event.name.replace("\0", "")[:100], data=event.data.replace("\0", ""))


def progress_of(event: sse.Event) -> tuple[float | None, str | None]:
    """Per cent (0 to 100) and message of a progress event; None for what it does not say."""
    if event.name != runs.PROGRESS:
        return None, None
    data = _object(event.data)
    percent = data.get("percent", data.get("progress"))
    message = data.get("message")
    known = isinstance(percent, int | float) and not isinstance(percent, bool) and math.isfinite(percent)
    return (
        min(100.0, max(0.0, float(percent))) if known and percent is not None else None,
        clean(message) if isinstance(message, str) else None,
    )


def clean(text: str) -> str:
    """Text that a database and a terminal can hold: no NUL, no lone surrogate, not endless."""
    return text[:MAX_MESSAGE].replace("\0", "").encode("utf-8", "replace").decode()


def text_of(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _problem_in(data: Mapping[str, Any]) -> dict[str, Any] | None:
    for candidate in (data.get("problem"), data.get("error"), data):
        if isinstance(candidate, dict) and "code" in candidate:
            return candidate
    return None


def _problem(error: errors.NexusError) -> dict[str, Any]:
    return problems.render(error)


def _seconds(value: object) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        return 0.0
    return min(300.0, max(0.0, seconds)) if math.isfinite(seconds) else 0.0
