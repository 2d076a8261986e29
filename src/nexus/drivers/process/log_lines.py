"""What an agent prints, one line at a time: JSON lines of the worker kept, anything else wrapped, control characters escaped.

Pure. The agent's bytes are hostile: nothing it prints may pass for another agent's line or steer a terminal.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nexus.wire import node

LEVELS = ("debug", "info", "warning", "error", "critical")
LONGEST_LINE = 16 * 1024
_OPTIONAL = ("stream", "run_id", "session_id", "logger", "trace_id")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_ALIASES = {"warn": "warning", "fatal": "critical", "trace": "debug", "notice": "info"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Whose lines these are; it always wins over what a line says of itself."""

    tenant: str
    agent: str
    environment: str
    version: str
    instance_id: str


@dataclass(frozen=True, slots=True)
class Redaction:
    """Takes secrets out of what an agent prints, as they are and as JSON writes them. Values too short to be secret stay."""

    pattern: re.Pattern[bytes] | None = None

    def apply(self, raw: bytes) -> bytes:
        return raw if self.pattern is None else self.pattern.sub(b"***", raw)

    def apply_text(self, text: str) -> str:
        return self.apply(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def plan_redaction(secrets: Iterable[str], *, shortest: int = 6) -> Redaction:
    """A redaction of these values; the longest first, so that one within another does not show the rest."""
    forms: set[bytes] = set()
    for value in secrets:
        if len(value) >= shortest:
            for text in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], *value.splitlines()):
                if len(text) >= shortest:
                    forms.add(text.encode("utf-8", "surrogateescape"))
    ordered = sorted(forms, key=lambda form: (-len(form), form))
    return Redaction(re.compile(b"|".join(re.escape(form) for form in ordered)) if ordered else None)


def parse_line(raw: bytes, origin: Origin, *, now: float) -> node.LogLine:
    """The line as it is stored. A line that is no JSON object with a message becomes the message of level info."""
    text = raw.decode("utf-8", "replace").rstrip("\r")
    said: Mapping[str, object] = {}
    if text.startswith("{") and text.endswith("}"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict) and "message" in value:
            said = value
    at = said.get("at")
    near = isinstance(at, int | float) and not isinstance(at, bool) and abs(at - now) < 86_400
    message = said.get("message", text)
    line = node.LogLine(
        at=float(at) if near and isinstance(at, int | float) else now,
        level=level_of(said.get("level")),
        message=clean(message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)),
        agent=origin.agent,
        instance_id=origin.instance_id,
        version=origin.version,
    )
    for name in _OPTIONAL:
        if (given := said.get(name)) and isinstance(given, str):
            line[name] = clean(given, 256)  # type: ignore[literal-required]
    return line


def notice(
    message: str, origin: Origin, *, now: float, level: str = "warning", run_id: str = "", session_id: str = ""
) -> node.LogLine:
    """A line of the host's own about this instance, and about a run of it where one is named."""
    line = node.LogLine(
        at=now,
        level=level,
        message=clean(message),
        agent=origin.agent,
        instance_id=origin.instance_id,
        version=origin.version,
        logger="nexus",
    )
    if run_id:
        line["run_id"] = run_id
    if session_id:
        line["session_id"] = session_id
    return line


def level_of(value: object) -> str:
    name = value.lower() if isinstance(value, str) else ""
    name = _ALIASES.get(name, name)
    return name if name in LEVELS else "info"


def clean(text: str, longest: int = LONGEST_LINE) -> str:
    r"""Control characters (but tab and line feed) as `\x1b`, so a terminal shows them instead of obeying."""
    if len(text) > longest:
        text = text[:longest] + f"… ({len(text) - longest} more)"
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}" if ord(match[0]) < 256 else f"\\u{ord(match[0]):04x}", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which lines are wanted; None means any. `since` is in seconds since the epoch, `level` the least one."""

    level: str | None = None
    since: float | None = None
    run_id: str | None = None
    session_id: str | None = None
    environment: str | None = None
    instance_id: str | None = None

    def takes(self, line: Mapping[str, object]) -> bool:
        at, level = line.get("at"), line.get("level")
        if self.since is not None and not (isinstance(at, int | float) and at >= self.since):
            return False
        if self.level is not None and LEVELS.index(level_of(level)) < LEVELS.index(self.level):
            return False
        return all(
            wanted is None or line.get(name) == wanted
            for name, wanted in (
                ("run_id", self.run_id),
                ("session_id", self.session_id),
                ("environment", self.environment),
                ("instance_id", self.instance_id),
            )
        )


@dataclass(slots=True)
class Splitter:
    """Chunks to lines. A line longer than `longest` is cut there and the rest of it thrown away, so memory stays bounded."""

    longest: int = LONGEST_LINE
    _rest: bytearray = field(default_factory=bytearray)
    _skipping: bool = False

    def feed(self, chunk: bytes) -> list[bytes]:
        *lines, rest = chunk.split(b"\n")
        found = []
        for line in lines:
            if self._skipping:
                self._skipping = False
            else:
                whole = bytes(self._rest) + line
                if whole.strip():
                    found.append(self._cut(whole))
            self._rest.clear()
        if not self._skipping:
            self._rest += rest
            if len(self._rest) > self.longest:
                found.append(self._cut(bytes(self._rest)))
                self._rest.clear()
                self._skipping = True
        return found

    def drain(self) -> list[bytes]:
        """What stands there without an end of line."""
        rest, self._skipping = bytes(self._rest), False
        self._rest.clear()
        return [rest] if rest.strip() else []

    def lose(self, chunk: bytes) -> int:
        """Throw a chunk away, keeping step with the ends of lines; how many ended in it."""
        ends = chunk.count(b"\n")
        if ends:
            self._skipping = not chunk.endswith(b"\n")
        else:
            self._skipping = True
        self._rest.clear()
        return ends

    def _cut(self, line: bytes) -> bytes:
        return line if len(line) <= self.longest else line[: self.longest] + " … (cut)".encode()


@dataclass(slots=True)
class Budget:
    """A token bucket of bytes: what an agent may log. `take` says whether a chunk fits."""

    per_second: float = 512 * 1024
    burst: float = 4 * 1024 * 1024
    _left: float = -1.0
    _at: float = 0.0

    def take(self, size: int, now: float) -> bool:
        if self._left < 0:
            self._left, self._at = self.burst, now
        self._left = min(self.burst, self._left + (now - self._at) * self.per_second)
        self._at = now
        if self._left < min(size, self.burst / 4):
            return False
        self._left = max(0.0, self._left - size)
        return True
