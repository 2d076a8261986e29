"""Counting tokens from what a model provider answers, as JSON or as a stream; and the sums per run.

A provider that reports nothing is estimated, and the record says so. Pure: bytes in, numbers (and bytes) out.
"""

import collections
import json
from dataclasses import dataclass, replace
from typing import Any

_LONGEST_EVENT = 4 * 1024 * 1024
_LETTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Tokens:
    """`cached` (read from the provider's prompt cache) and `cache_written` are parts of `input`; `reasoning` is of `output`."""

    input: int = 0
    output: int = 0
    cached: int = 0
    cache_written: int = 0
    reasoning: int = 0

    def with_output(self, output: int) -> "Tokens":
        return replace(self, output=output)

    def most(self, other: "Tokens") -> "Tokens":
        """The larger of each: a stream tells its sums more than once, and not all of them each time."""
        return Tokens(
            max(self.input, other.input),
            max(self.output, other.output),
            max(self.cached, other.cached),
            max(self.cache_written, other.cache_written),
            max(self.reasoning, other.reasoning),
        )


def parse_usage(answer: Any) -> Tokens | None:
    """The usage in a provider's JSON: OpenAI chat and completions (`prompt_tokens`), responses and Anthropic (`input_tokens`,
    with what was read from or written to its cache), embeddings. None when there is none."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return None
    given = _count(usage, "prompt_tokens")
    written = cached = 0
    if given is None:
        given = _count(usage, "input_tokens")
        if given is not None:
            written = _count(usage, "cache_creation_input_tokens") or 0
            cached = _count(usage, "cache_read_input_tokens") or 0
            given += written + cached
    made = _count(usage, "completion_tokens")
    if made is None:
        made = _count(usage, "output_tokens")
    if given is None and made is None:
        return None
    cached = cached or _detail(usage, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens")
    reasoning = _detail(usage, ("completion_tokens_details", "output_tokens_details"), "reasoning_tokens")
    return Tokens(given or 0, made or 0, min(cached, given or 0), written, min(reasoning, made or 0))


def _detail(usage: dict[str, Any], places: tuple[str, ...], name: str) -> int:
    for place in places:
        details = usage.get(place)
        if isinstance(details, dict) and (found := _count(details, name)) is not None:
            return found
    return 0


def _count(usage: dict[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def estimate(size: int) -> int:
    """Tokens in so many bytes of text, roughly."""
    return -(-size // _LETTERS_PER_TOKEN)


class StreamCounter:
    """Reads a provider's SSE as it passes. `tokens` is what it reported so far, `final` whether that counts the output too (a
    message's first event does not), `pieces` how many events carried text.

    With `hide_usage` the extra chunk that only `stream_options.include_usage` brings (no choices, a usage) is kept
    from the client, who had not asked for it; then events are passed on whole, each as soon as it is complete.
    """

    def __init__(self, *, hide_usage: bool) -> None:
        self.tokens: Tokens | None = None
        self.pieces = 0
        self.final = False
        self._hide = hide_usage
        self._rest = b""
        self._lost = False

    def feed(self, part: bytes) -> bytes:
        """The next bytes of the stream, and what of it may be passed on now."""
        if self._lost:
            return part
        if not self._rest and (events := _plain_events(part)):
            self.pieces += events
            return part
        searched = max(0, len(self._rest) - len(b"\r\n\r"))
        self._rest += part
        passed: list[bytes] = []
        while (end := _event_end(self._rest, searched)) > 0:
            event, self._rest, searched = self._rest[:end], self._rest[end:], 0
            if not (self._take(event) and self._hide):
                passed.append(event)
        if len(self._rest) > _LONGEST_EVENT:
            self._lost = True
            passed.append(self.flush())
        return b"".join(passed) if self._hide else part

    @property
    def inside_event(self) -> bool:
        """Whether what was passed on so far ends in the middle of an event."""
        return bool(self._rest) and not self._hide

    def flush(self) -> bytes:
        """What is left when the stream ends in the middle of an event."""
        rest, self._rest = self._rest, b""
        return rest if self._hide else b""

    def _take(self, event: bytes) -> bool:
        """Count one event; True when it is the extra usage chunk."""
        data = b"".join(line[5:] for line in event.splitlines() if line.startswith(b"data:")).strip()
        if not data or data == b"[DONE]":
            return False
        self.pieces += 1
        if not _may_tell_usage(data):
            return False
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            return False
        if not isinstance(chunk, dict):
            return False
        found = parse_usage(chunk) or parse_usage(chunk.get("response"))
        self.final = self.final or found is not None
        found = found or parse_usage(chunk.get("message"))
        if found is None:
            return False
        self.tokens = (self.tokens or Tokens()).most(found)
        return chunk.get("choices") == []


def _plain_events(part: bytes) -> int:
    """How many events `part` holds when it is whole events of one data line each that say nothing about usage; else 0.

    Nearly every part of a stream is so, and then need not be taken to pieces.
    """
    if not part.endswith(b"\n\n") or b"\r" in part or b"[DONE]" in part or _may_tell_usage(part):
        return 0
    events = part.count(b"\n\n")
    lines = part.count(b"\ndata: {") + part.startswith(b"data: {")
    return events if events == lines else 0


def _may_tell_usage(data: bytes) -> bool:
    """Whether a usage that is not null stands in there, perhaps."""
    named = data.count(b'"usage"')
    return named > 0 and named != data.count(b'"usage":null') + data.count(b'"usage": null')


def _event_end(data: bytes, start: int) -> int:
    """Where the first event in `data` ends (behind its blank line), which is not before `start`; 0 when it is not complete."""
    end = data.find(b"\n\n", start)
    if b"\r" not in data:
        return end + 2 if end >= 0 else 0
    other = data.find(b"\r\n\r\n", start)
    return min((place for place in (end + 2 if end >= 0 else 0, other + 4 if other >= 0 else 0) if place), default=0)


class Ledger:
    """What each run's model calls used, for the newest runs only."""

    def __init__(self, *, most: int = 20_000) -> None:
        self._most = most
        self._runs: collections.OrderedDict[tuple[str, str], list[int]] = collections.OrderedDict()

    def add(
        self, instance_id: str, run_id: str, *, tokens: Tokens, calls: int, estimated: bool = False, cost_nano: int = 0
    ) -> None:
        if not run_id:
            return
        key = (instance_id, run_id)
        sums = self._runs.get(key)
        if sums is None:
            sums = self._runs[key] = [0, 0, 0, 0, 0]
            if len(self._runs) > self._most:
                self._runs.popitem(last=False)
        else:
            self._runs.move_to_end(key)
        sums[0] += tokens.input
        sums[1] += tokens.output
        sums[2] += calls
        sums[3] |= estimated
        sums[4] += cost_nano

    def of_run(self, instance_id: str, run_id: str) -> dict[str, object]:
        given, made, calls, estimated, cost_nano = self._runs.get((instance_id, run_id), (0, 0, 0, 0, 0))
        value: dict[str, object] = {"input_tokens": given, "output_tokens": made, "calls": calls}
        if estimated:
            value["estimated"] = True
        if cost_nano:
            value["cost"] = cost_nano / 1e9
        return value
