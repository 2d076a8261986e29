"""Crash-proof tasks: what an attempt asked of the outside is recorded, and the next attempt gets the same answers at once.

`Recorder` belongs to the worker and speaks with the door; a `Recording` belongs to one run. Only tasks are recorded. A model
call is known by its path and body and by how often the run has made it before; the first one that is not found ends the
recording of model calls, a named step is looked for in any case. Called from the run's loop, from the threads of synchronous
code and from the relay's thread.
"""

import base64
import hashlib
import json
import logging
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from nexus.core import errors, ids
from nexus.kit import http_client
from nexus.ports import run as ports
from nexus.wire import problem
from nexus.worker import asks, talks
from nexus.worker import door as doors

_LOG = logging.getLogger("nexus.worker")
MOST_RECORDED = 8 * 1024 * 1024
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")

T = TypeVar("T")


class Recording:
    """The recorded calls of one run. `attempt` is told to the host, which refuses those of an attempt that was replaced.

    `leave` is called when the run asked a person and has to end until there is an answer.
    """

    def __init__(self, door: doors.Door, task_id: str, attempt: int) -> None:
        self._door, self._task_id, self.attempt = door, task_id, attempt
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._live = attempt <= 1
        self.leave: Callable[[Mapping[str, Any]], None] = lambda ask: None
        self.tell: Callable[[str, Mapping[str, Any]], None] = lambda name, data: None

    async def step(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """The recorded result of this step, or that of `work`, recorded. Results are JSON."""
        key = self._key("step", _safe(name))
        found = await self._say(self._open(key, live=False))
        if found["status"] == "done":
            return json.loads(base64.b64decode(found["body"]))
        try:
            value = await work()
        except (Exception, ports.Asked):  # who asks inside a step has not done it
            self._take_back(key)
            await self._say(self._forget(key))
            raise
        return await self._say(self._finish(name, key, value))

    def step_blocking(self, name: str, work: Callable[[], Any]) -> Any:
        """The same for code in a thread of its own."""
        key = self._key("step", _safe(name))
        found = self._say_blocking(self._open(key, live=False))
        if found["status"] == "done":
            return json.loads(base64.b64decode(found["body"]))
        try:
            value = work()
        except (Exception, ports.Asked):  # who asks inside a step has not done it
            self._take_back(key)
            self._say_blocking(self._forget(key))
            raise
        return self._say_blocking(self._finish(name, key, value))

    async def ask(self, question: ports.Question) -> Any:
        """The answer of a person; `Asked` is raised as long as there is none. Raises `Exhausted` (`ask.timeout`)."""
        return await self._say(self._ask(self._key("ask", asks.name_of(question)), question))

    def ask_blocking(self, question: ports.Question) -> Any:
        return self._say_blocking(self._ask(self._key("ask", asks.name_of(question)), question))

    async def open_call(self, path: str, body: bytes) -> "Call":
        """A model call that is about to be made: its recorded answer, or the place where to record it."""
        digest = hashlib.sha256(path.encode() + b"\0" + body).hexdigest()[:32]
        key = self._key("model", digest)
        found = await self._say(self._open(key, live=self._live, request=_kept(path, body)))
        if found["status"] != "done":
            if not self._live:
                _LOG.info("the recording of task %s ends here; model calls are live again", self._task_id)
            self._live = True
            return Call(self, key)
        return Call(self, key, head=found["head"], body=base64.b64decode(found["body"]))

    def _key(self, kind: str, name: str) -> str:
        with self._lock:
            number = self._seen[f"{kind}/{name}"]
            self._seen[f"{kind}/{name}"] += 1
        return f"{kind}/{name}/{number}"

    def _take_back(self, key: str) -> None:
        """The call of this key failed and leaves no trace: the same call again stands in its place."""
        name, _, number = key.rpartition("/")
        with self._lock:
            if self._seen[name] == int(number) + 1:
                self._seen[name] -= 1

    def _open(self, key: str, *, live: bool, request: bytes = b"") -> talks.Talk[dict[str, Any]]:
        sent = zlib.compress(request, 1) if request else b""
        path = self._path("steps", key)
        answer = yield "POST", path + ("&live=true" if live else ""), sent
        found = _value(answer, "done", "new", "unknown", "ask")
        if found["status"] != "ask":
            return found
        question = asks.unknown_outcome(key, int(found.get("attempt", 0)))
        decided = yield from self._ask(f"ask/{asks.name_of(question)}/0", question)
        if decided == "fail":
            raise asks.given_up(key)
        answer = yield "POST", path + "&repeat=true", sent
        found = _value(answer, "done", "new", "unknown")
        if isinstance(decided, dict) and found["status"] != "done":
            body = json.dumps(decided["result"]).encode()
            yield from self._close(key, {}, body)
            return {"status": "done", "head": {}, "body": base64.b64encode(body)}
        return found

    def _ask(self, key: str, question: ports.Question) -> talks.Talk[Any]:
        answer = yield "POST", self._path("asks", key), asks.render(question)
        found = _value(answer, "open", "answered", "expired")
        told = {"ask_id": found["ask_id"], "question": question.text}
        if found["status"] == "open":
            if found.get("unused"):
                _LOG.warning(
                    "task %s asks %r, and an answer it was given before is not used: it asked in other words then; give the "
                    "question a name that stays the same",
                    self._task_id,
                    question.text[:80],
                )
            self.tell("ask.opened", {**told, **{name: found[name] for name in ("choices", "expires_at") if found.get(name)}})
            self.leave(told)
            raise ports.Asked(question.text)
        if found.get("fresh"):
            self.tell(f"ask.{found['status']}", {"ask_id": found["ask_id"], "answer": found.get("answer")})
        return asks.read(question, found)

    def _finish(self, name: str, key: str, value: Any) -> talks.Talk[Any]:
        try:
            body = json.dumps(value, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            yield from self._forget(key)
            raise errors.AgentFailed(
                f"the result of step {name[:64]!r} is not JSON",
                code="step.unserialisable",
                cause=f"{type(error).__name__}: {error}",
                next_step="return strings, numbers, lists and objects from a step",
            ) from error
        if len(body) > MOST_RECORDED:
            raise errors.Exhausted(
                f"the result of step {name[:64]!r} has more than {MOST_RECORDED} bytes",
                code="step.too_large",
                next_step="store it elsewhere and return where",
            )
        yield from self._close(key, {}, body)
        return json.loads(body)

    def _close(self, key: str, head: dict[str, Any], body: bytes) -> talks.Talk[None]:
        sent = json.dumps({"head": head, "body": base64.b64encode(body).decode()}).encode()
        answer = yield "PUT", self._path("steps", key), sent
        _check(answer)

    def _forget(self, key: str) -> talks.Talk[None]:
        """Take a failed call from the recording; if that fails too, the next attempt finds it with an unknown outcome."""
        try:
            answer = yield "PUT", self._path("steps", key), b""
            _check(answer)
        except errors.NexusError as error:
            _LOG.warning("a failed call could not be taken from the recording: %s", error.cause or error.message)

    async def _say(self, talk: talks.Talk[T]) -> T:
        return await talks.say(self._door, talk)

    def _say_blocking(self, talk: talks.Talk[T]) -> T:
        return talks.say_blocking(self._door, talk)

    def _path(self, what: str, key: str) -> str:
        return f"/door/runs/{self._task_id}/{what}?key={quote(key, safe='')}&attempt={self.attempt}"


class Call:
    """One model call. `head` (status and headers) and `body` are those of the recorded answer, if there is one."""

    def __init__(self, recording: Recording, key: str, head: dict[str, Any] | None = None, body: bytes = b"") -> None:
        self._recording, self._key = recording, key
        self.head, self.body = head, body

    async def keep(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """The whole answer has come. Only good ones are kept: a failure is tried again by the next attempt."""
        recording = self._recording
        if 200 <= status < 300 and len(body) <= MOST_RECORDED:
            await recording._say(recording._close(self._key, {"status": status, "headers": headers}, body))
        else:
            recording._take_back(self._key)
            await recording._say(recording._forget(self._key))


class Recorder:
    """Makes the recordings of runs; `find` gives that of a run in hand to the relay."""

    def __init__(self, door: doors.Door) -> None:
        self._door = door
        self._open: dict[str, Recording] = {}

    def begin(self, run_id: str, attempt: int) -> Recording | None:
        """None for what is no task."""
        if not ids.is_id(run_id, ids.TASK):
            return None
        made = self._open[run_id] = Recording(self._door, run_id, attempt)
        return made

    def end(self, run_id: str) -> None:
        self._open.pop(run_id, None)

    def find(self, run_id: str) -> Recording | None:
        return self._open.get(run_id)

    async def close(self) -> None:
        """In a loop that is about to end: close what it holds open."""
        await self._door.close()


def _kept(path: str, body: bytes) -> bytes:
    """What a replay compares; of a huge request only where it went."""
    return path.encode() + b"\n" + (body if len(body) <= MOST_RECORDED else b"")


def _safe(name: str) -> str:
    return "".join(letter if letter in _PLAIN else quote(letter) for letter in name)[:200]


def _value(answer: http_client.Answer, *known: str) -> dict[str, Any]:
    _check(answer)
    value = json.loads(answer.body)
    if not isinstance(value, dict) or value.get("status") not in known:
        raise errors.Unavailable("the platform's door gave an answer nobody understands", code="door.refused")
    return value


def _check(answer: http_client.Answer) -> None:
    if answer.status < 300:
        return
    try:
        raise problem.parse(json.loads(answer.body))
    except (ValueError, AttributeError):
        raise errors.Unavailable(f"the platform's door answered {answer.status}", code="door.refused") from None
