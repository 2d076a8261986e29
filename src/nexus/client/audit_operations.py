"""The audit trail, without I/O."""

from typing import Any, Literal

from nexus.client import answers, feeds
from nexus.client.calls import Call, Operation, ask


def list_audit(
    *,
    after: int = 0,
    limit: int | None = None,
    since: float | None = None,
    until: float | None = None,
    agent: str | None = None,
    run: str | None = None,
    content: bool = False,
) -> Operation[list[answers.Answer]]:
    """Audit records behind number `after`, oldest first. `since` and `until` are in seconds since the epoch."""
    query = {"after": after or None, "limit": limit, "run": run, **_query(since, until, agent, content)}
    reply = yield from ask(Call(method="GET", path="/v1/audit", query=query))
    return [answers.Answer(entry) for entry in reply.items()]


def export_audit(
    *,
    form: Literal["jsonl", "csv"] | str = "jsonl",
    since: float | None = None,
    until: float | None = None,
    agent: str | None = None,
    content: bool = False,
) -> feeds.Feed[bytes]:
    """The records as a file's bytes, in pieces of any size."""
    query = {"format": form, **_query(since, until, agent, content)}
    return feeds.ByteFeed(Call(method="GET", path="/v1/audit/export", query=query))


def verify_audit() -> Operation[answers.Answer]:
    """`{"intact", "verified", "first", "last", "hash", "fault"?}` of this tenant's whole chain."""
    reply = yield from ask(Call(method="GET", path="/v1/audit/verify", timeout_s=600))
    return answers.Answer(reply.object())


def _query(since: float | None, until: float | None, agent: str | None, content: bool) -> dict[str, Any]:
    return {
        "since": None if since is None else repr(since),
        "until": None if until is None else repr(until),
        "agent": agent,
        "content": "true" if content else None,
    }
