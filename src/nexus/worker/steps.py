"""Crash-proof tasks: what an attempt asked of the outside is recorded, and the next attempt gets the same answers at once.

`Recorder` belongs to the worker and speaks with the door; a `Recording` belongs to one run. Only tasks are recorded. A model
call is known by its path and body and by how often the run has made it before; the first one that is not found ends the
recording of model calls, a named step is looked for in any case. Called from the run's loop and from the relay's thread.
"""

import base64
import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from nexus.core import errors, ids
from nexus.wire import problem
from nexus.worker import door as doors

_LOG = logging.getLogger("nexus.worker")
MOST_RECORDED = 8 * 1024 * 1024
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class Recording:
    """The recorded calls of one run. `attempt` is told to the host, which refuses those of an attempt that was replaced."""

    def __init__(self, door: doors.Door, task_id: str, attempt: int) -> None:
        self._door, self._task_id, self._attempt = door, task_id, attempt
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._live = attempt <= 1

    async def step(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """The recorded result of this step, or that of `work`, recorded. Results are JSON."""
        key = self._key("step", "".join(letter if letter in _PLAIN else quote(letter) for letter in name)[:200])
        found = await self._open(key, live=False)
        if found["status"] == "done":
            return json.loads(base64.b64decode(found["body"]))
        try:
            value = await work()
        except Exception:
            self._take_back(key)
            await self._close_quietly(key, b"")
            raise
        try:
            body = json.dumps(value, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            await self._close_quietly(key, b"")
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
        await self._close(key, {}, body)
        return json.loads(body)

    async def open_call(self, path: str, body: bytes) -> "Call":
        """A model call that is about to be made: its recorded answer, or the place where to record it."""
        digest = hashlib.sha256(path.encode() + b"\0" + body).hexdigest()[:32]
        key = self._key("model", digest)
        found = await self._open(key, live=self._live)
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

    async def _open(self, key: str, *, live: bool) -> dict[str, Any]:
        answer = await self._door.call("POST", self._path(key) + ("&live=true" if live else ""))
        _check(answer.status, answer.body)
        value = json.loads(answer.body)
        if not isinstance(value, dict) or value.get("status") not in ("done", "new", "unknown"):
            raise errors.Unavailable("the platform's door gave an answer nobody understands", code="door.refused")
        return value

    async def _close(self, key: str, head: dict[str, Any], body: bytes) -> None:
        sent = json.dumps({"head": head, "body": base64.b64encode(body).decode()}).encode()
        answer = await self._door.call("PUT", self._path(key), sent)
        _check(answer.status, answer.body)

    async def _close_quietly(self, key: str, body: bytes) -> None:
        try:
            answer = await self._door.call("PUT", self._path(key), body)
            _check(answer.status, answer.body)
        except errors.NexusError as error:
            _LOG.warning("a failed call could not be taken from the recording: %s", error.cause or error.message)

    def _path(self, key: str) -> str:
        return f"/door/runs/{self._task_id}/steps?key={quote(key, safe='')}&attempt={self._attempt}"


class Call:
    """One model call. `head` (status and headers) and `body` are those of the recorded answer, if there is one."""

    def __init__(self, recording: Recording, key: str, head: dict[str, Any] | None = None, body: bytes = b"") -> None:
        self._recording, self._key = recording, key
        self.head, self.body = head, body

    async def keep(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """The whole answer has come. Only good ones are kept: a failure is tried again by the next attempt."""
        if 200 <= status < 300 and len(body) <= MOST_RECORDED:
            await self._recording._close(self._key, {"status": status, "headers": headers}, body)
        else:
            self._recording._take_back(self._key)
            await self._recording._close_quietly(self._key, b"")


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


def _check(status: int, body: bytes) -> None:
    if status < 300:
        return
    try:
        raise problem.parse(json.loads(body))
    except (ValueError, AttributeError):
        raise errors.Unavailable(f"the platform's door answered {status}", code="door.refused") from None
