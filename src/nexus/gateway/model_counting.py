"""What a call used: read from the provider's answer as it passes, estimated where the provider says nothing."""

import json

from nexus.gateway import usage
from nexus.gateway.model_call import COUNTING, EMBEDDINGS, ModelCall

LONGEST_COPY = 8 * 1024 * 1024


class Counter:
    """Watches one answer. `stream` counts event by event; else the answer is copied, up to a bound, and read at its end."""

    def __init__(self, call: ModelCall) -> None:
        self._call = call
        self.stream: usage.StreamCounter | None = None

    def begin_stream(self) -> None:
        self.stream = usage.StreamCounter(hide_usage=self._call.hide_usage)

    def keep(self, part: bytes) -> None:
        """A part of an answer that is not a stream."""
        call = self._call
        call.copied += len(part)
        if call.copied <= LONGEST_COPY:
            call.copy += part
        else:
            call.copy.clear()

    def finish(self, status: int) -> None:
        """Set the call's tokens: a provider's own word first."""
        call = self._call
        call.tokens, call.estimated = self._count(status)

    def _count(self, status: int) -> tuple[usage.Tokens, bool]:
        call, stream = self._call, self.stream
        if stream is not None:
            if stream.tokens is not None and stream.tokens.output:
                return stream.tokens, False
            given = stream.tokens or usage.Tokens(input=usage.estimate(call.size))
            return given.with_output(stream.pieces), True
        if call.ready is not None or not 200 <= status < 300 or call.path == COUNTING:
            return usage.Tokens(), False
        try:
            found = usage.parse_usage(json.loads(call.copy)) if call.copy else None
        except (ValueError, RecursionError):
            found = None
        if found is not None:
            return found, False
        made = 0 if call.path == EMBEDDINGS else usage.estimate(call.copied)
        return usage.Tokens(usage.estimate(call.size), made), True
