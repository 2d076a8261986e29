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

    def finish(self) -> None:
        """Set the call's tokens: a provider's own word first."""
        call = self._call
        call.tokens, call.estimated = self._count()

    def _count(self) -> tuple[usage.Tokens, bool]:
        call, stream = self._call, self.stream
        if stream is not None:
            if stream.tokens is not None and stream.final:
                return stream.tokens, False
            given = stream.tokens or usage.Tokens(input=call.input_estimate)
            return given.with_output(max(given.output, stream.pieces)), True
        if not call.attempted or call.path == COUNTING or call.provider_status >= 300:
            return usage.Tokens(), False
        if not call.provider_status:  # it was sent, and nobody waited for the answer: the prompt at least has been read
            return usage.Tokens(input=call.input_estimate), True
        try:
            found = usage.parse_usage(json.loads(call.copy)) if call.copy else None
        except (ValueError, RecursionError):
            found = None
        if found is not None:
            return found, False
        made = 0 if call.path == EMBEDDINGS else usage.estimate(call.copied)
        return usage.Tokens(call.input_estimate, made), True
