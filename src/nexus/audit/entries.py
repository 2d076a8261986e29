"""What of a gateway's report becomes an audit record: its own plain fields, bounded, as one exact text. Pure."""

import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nexus.audit import redaction

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_MOST_FIELDS = 60
_LONGEST = 512
_NOT_KEPT = frozenset({"kind", "content", "trace", "content_hash", "content_cut"})
_SIDES = ("request", "response")
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One record before it has a place. `text` is what is hashed; `content` (JSON, redacted) is kept beside it, for less long."""

    id: str
    tenant: str
    at: float
    agent: str
    environment: str
    run_id: str
    text: str
    content: str | None = None


def render_entry(report: Any, rules: redaction.Rules) -> Entry | None:
    """The entry of a reported model call; None for anything else. Names of fields are the record's own (`wire.runs`)."""
    if not isinstance(report, Mapping) or report.get("kind") != "model" or not isinstance(report.get("tenant"), str):
        return None
    fields: dict[str, Any] = {"kind": "model"}
    for name, value in report.items():
        if name not in _NOT_KEPT and len(fields) < _MOST_FIELDS and _is_name(name):
            kept = _plain(value)
            if kept is not None:
                fields[name] = kept
    content = _content(report.get("content"), rules)
    if content is not None:
        fields["content_hash"] = hash_content(content)
        if report.get("content_cut") is True:
            fields["content_cut"] = True
    at = fields.get("started_at")
    text = _ENCODE(fields)
    return Entry(
        id=str(fields.get("id") or hashlib.sha256(text.encode()).hexdigest()),
        tenant=str(fields.get("tenant", "")),
        at=float(at) if isinstance(at, int | float) else 0.0,
        agent=str(fields.get("agent", "")),
        environment=str(fields.get("environment", "")),
        run_id=str(fields.get("run_id", "")),
        text=text,
        content=content,
    )


def hash_content(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def content_hash_of(text: str) -> str | None:
    """What a record says of its content."""
    if '"content_hash"' not in text:
        return None
    try:
        found = json.loads(text).get("content_hash")
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _content(given: Any, rules: redaction.Rules) -> str | None:
    if not isinstance(given, Mapping):
        return None
    sides = {side: rules.redact(_printable(given[side])) for side in _SIDES if isinstance(given.get(side), str)}
    return _ENCODE(sides) if sides else None


@functools.lru_cache(maxsize=1000)
def _is_name(name: Any) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _plain(value: Any) -> Any:
    """A plain value as it is kept; None leaves the field out."""
    kind = type(value)
    if kind is str:
        return value if len(value) <= _LONGEST and value.isascii() and "\0" not in value else _printable(value[:_LONGEST])
    if kind is int:
        return value if abs(value) < 2**63 else None
    if kind is float:
        return value if math.isfinite(value) else None
    return value if kind is bool else None


def _printable(text: str) -> str:
    """Without NUL and lone surrogates, which the database cannot keep."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
