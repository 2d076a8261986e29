"""What an ASGI app answers a run with, read as it comes: events and plain text stream, JSON is the output."""

import json
from collections.abc import Mapping
from typing import Any

from nexus.core import errors
from nexus.kit import sse
from nexus.worker import runs
from nexus.worker.adapters import contract, responses_api, tell

_LONGEST = 64 * 1024 * 1024


class Answer:
    """One response of the app. `reader` has what it said where it speaks the Responses API."""

    def __init__(self, run: runs.Run, path: str) -> None:
        self._run, self._path = run, path
        self._kind = ""
        self._whole = bytearray()
        self._events = sse.Decoder()
        self._collected = contract.Collector(run)
        self._speaks_responses = False
        self.status = 0
        self.reader = responses_api.Reader(run)

    async def take(self, message: Mapping[str, Any]) -> None:
        """The app's `send`."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = {bytes(name).lower(): bytes(value) for name, value in message.get("headers", ())}
            self._kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip()
        elif message["type"] == "http.response.body":
            piece = message.get("body", b"")
            if self._kind == "text/event-stream" and self.status < 400:
                for event in self._events.feed(piece):
                    self._event(event.data)
            else:
                self._whole += piece
                if len(self._whole) > _LONGEST:
                    raise errors.AgentFailed("the app's answer is too large", code="agent.bad_response", phase="run")
            await self._run.room()

    def json(self) -> Any:
        """The body as JSON, None when it is none."""
        try:
            return json.loads(self._whole)
        except ValueError:
            return None

    def output(self) -> Any:
        text = self._whole.decode("utf-8", "replace")
        if not 200 <= self.status < 300:
            raise errors.AgentFailed(
                "the agent failed",
                code="agent.failed",
                phase="run",
                cause=f"POST {self._path} answered {self.status}: {text[:1000]}",
                next_step="look at the agent's log",
            )
        if self._kind == "text/event-stream":
            return self.reader.finish() if self._speaks_responses else self._collected.output()
        if self._kind != "application/json" and not self._kind.endswith("+json"):
            tell.delta(self._run, text)
            return text
        value = json.loads(text) if text else None
        if responses_api.is_response(value):
            return self.reader.finish(value)
        return value["output"] if self._path == "/run" and isinstance(value, dict) and "output" in value else value

    def _event(self, data: str) -> None:
        if data == "[DONE]":
            return
        try:
            value = json.loads(data)
        except ValueError:
            value = data
        if isinstance(value, dict) and "error" in value and "error_type" in value:
            raise errors.AgentFailed(
                "the agent failed", code="agent.failed", phase="run", cause=f"{value['error_type']}: {value['error']}"
            )
        if responses_api.is_event(value):
            self._speaks_responses = True
            self.reader.take(value)
        else:
            self._collected.take(value)
