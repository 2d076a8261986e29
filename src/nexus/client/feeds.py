"""Streams without I/O: bytes in, values out, and what a lost connection means. One class for each kind of stream."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from nexus.client import answers, calls
from nexus.core import errors
from nexus.kit import backoff, sse
from nexus.wire import problem, runs

T_co = TypeVar("T_co", covariant=True)
_PAUSES = backoff.Backoff(first_s=0.2, longest_s=5.0, least_s=0.05)
_MOST_FAILURES = 20
_LONGEST_LINE = 16 * 1024 * 1024


class Feed(Protocol[T_co]):
    """A stream being read. A transport makes `call()`, feeds `take`, and on the end of the connection asks `lost`."""

    @property
    def finished(self) -> bool:
        """True once the stream said by itself that it is over."""
        ...

    def call(self) -> calls.Call: ...

    def take(self, data: bytes) -> Iterator[T_co]: ...

    def lost(self, error: errors.NexusError | None) -> float | None:
        """The connection ended (`error` None) or broke: seconds to wait before `call()` is made again, None when the stream is
        over, or the error is raised."""
        ...


class _Events(Generic[T_co]):
    """Server-sent events that go on where they stopped when the connection breaks."""

    def __init__(self, call: calls.Call, *, resumable: bool) -> None:
        self._call = replace(call, patient=True, headers={"Accept": "text/event-stream", **call.headers})
        self._resumable = resumable
        self._decoder = sse.Decoder()
        self._last_id: str | None = None
        self._failures = 0
        self.finished = False

    def call(self) -> calls.Call:
        self._decoder = sse.Decoder()
        if self._last_id is None:
            return self._call
        return replace(self._call, headers={**self._call.headers, "Last-Event-ID": self._last_id})

    def take(self, data: bytes) -> Iterator[T_co]:
        try:
            for event in self._decoder.feed(data):
                self._failures = 0
                if event.id is not None:
                    self._last_id = event.id
                yield self._value(event.name, _object(event.data), event.id)
                if self.finished:
                    return
        except ValueError as error:
            raise errors.Internal("the host's stream cannot be read", code="host.bad_answer", cause=str(error)) from error

    def lost(self, error: errors.NexusError | None) -> float | None:
        never_reached = error is not None and error.code == "host.unreachable" and self._last_id is None and not self._failures
        if not self._resumable or never_reached or self._failures >= _MOST_FAILURES:
            raise error or errors.Unavailable(
                "the stream ended before the run did", code="stream.cut", next_step="run it again, or submit it as a task"
            )
        self._failures += 1
        return _PAUSES.pause_s(self._failures)

    def _value(self, name: str, data: dict[str, Any], event_id: str | None) -> T_co:
        raise NotImplementedError


class RunFeed(_Events[answers.Chunk]):
    """The events of a streamed run. A failed or cancelled run raises its error; a cut connection is not tried again."""

    def __init__(self, call: calls.Call) -> None:
        super().__init__(call, resumable=False)
        self._told = False

    def _value(self, name: str, data: dict[str, Any], event_id: str | None) -> answers.Chunk:
        self.finished = name in runs.TERMINAL
        if name in (runs.RUN_FAILED, runs.RUN_CANCELLED):
            raise _failure(name, data)
        text = _text(name, data)
        if name == runs.RUN_COMPLETED and not self._told and isinstance(data.get("output"), str):
            text = data["output"]
        self._told = self._told or bool(text)
        return answers.Chunk(event=name, data=data, id=event_id, text=text)


class TaskFeed(_Events[answers.Chunk]):
    """The numbered events of a task, to its terminal one, resumed after a broken connection."""

    def __init__(self, call: calls.Call, *, after: str | None) -> None:
        super().__init__(call, resumable=True)
        self._last_id = after

    def _value(self, name: str, data: dict[str, Any], event_id: str | None) -> answers.Chunk:
        self.finished = name in runs.TERMINAL
        return answers.Chunk(event=name, data=data, id=event_id, text=_text(name, data))


class RolloutFeed(_Events[answers.Answer]):
    """The steps of a deployment on its way, to the one that is `done`."""

    def __init__(self, call: calls.Call) -> None:
        super().__init__(call, resumable=True)

    def _value(self, name: str, data: dict[str, Any], event_id: str | None) -> answers.Answer:
        self.finished = bool(data.get("done"))
        return answers.Answer(data)


class LineFeed:
    """JSON lines, as logs come. Ends with its connection."""

    def __init__(self, call: calls.Call) -> None:
        self._call = replace(call, patient=True)
        self._rest = b""
        self.finished = False

    def call(self) -> calls.Call:
        return self._call

    def take(self, data: bytes) -> Iterator[answers.Answer]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            raise errors.Internal("the host sent a line without end", code="host.bad_answer")
        for line in lines:
            if line.strip():
                yield answers.Answer(_object(line.decode("utf-8", "replace")))

    def lost(self, error: errors.NexusError | None) -> float | None:
        if error is not None:
            raise error
        return None


class ByteFeed:
    """A body as it comes, for files. Ends with its connection."""

    def __init__(self, call: calls.Call) -> None:
        self._call = replace(call, patient=True)
        self.finished = False

    def call(self) -> calls.Call:
        return self._call

    def take(self, data: bytes) -> Iterator[bytes]:
        yield data

    def lost(self, error: errors.NexusError | None) -> float | None:
        if error is not None:
            raise error
        return None


def _text(name: str, data: Mapping[str, Any]) -> str:
    text = data.get("text") if name == runs.MESSAGE_DELTA else None
    return text if isinstance(text, str) else ""


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {"text": text}
    return value if isinstance(value, dict) else {"value": value}


def _failure(name: str, data: Mapping[str, Any]) -> errors.NexusError:
    if "kind" in data and "code" in data:
        return problem.parse(data)
    if name == runs.RUN_CANCELLED:
        return errors.AgentFailed("the run was cancelled", code="run.cancelled")
    return errors.AgentFailed(str(data.get("detail") or data.get("message") or "the run failed"))
