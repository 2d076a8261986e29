"""Composes the audit trail for the control process: its settings, its store, and its place on the way of the records."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.audit import redaction, service
from nexus.audit.settings import AuditSettings
from nexus.core import errors
from nexus.kit import clock
from nexus.kit.home import Home
from nexus.secrets.service import SecretService
from nexus.stores.postgres import audit_store

Sink = Callable[[Sequence[Any]], Awaitable[None]]
CONTENT_MODES: tuple[Literal["never", "off", "on"], ...] = ("never", "off", "on")
_MOST_DAYS = 36_500


async def make_trail(
    engine: AsyncEngine, *, environ: Mapping[str, str], home: Home, secrets: SecretService, clock: clock.Clock
) -> service.AuditTrail:
    """Not yet entered. Raises `Invalid` (`setting.invalid`) naming the variable that cannot be used."""
    return service.AuditTrail(
        store=audit_store.PostgresAuditStore(engine),
        platform_key=await secrets.platform_key("audit"),
        settings=read_settings(environ, home),
        clock=clock,
    )


def store_and_audit(store: Sink, trail: service.AuditTrail) -> Sink:
    """What the feed hands records to. Acknowledged when both have them; either leaves alone what it has."""

    async def both(records: Sequence[Any]) -> None:
        await store(records)
        await trail.take(records)

    return both


def read_settings(environ: Mapping[str, str], home: Home) -> AuditSettings:
    patterns = [line.strip() for line in environ.get("NEXUS_AUDIT_REDACT", "").splitlines() if line.strip()]
    try:
        rules = redaction.Rules(patterns)
    except ValueError as error:
        raise errors.Invalid(
            "NEXUS_AUDIT_REDACT cannot be used", code="setting.invalid", cause=str(error), next_step="one pattern a line"
        ) from None
    return AuditSettings(
        anchors=home.root / "audit" / "anchors",
        rules=rules,
        keep_s=_days(environ, "NEXUS_AUDIT_DAYS", 400),
        keep_content_s=_days(environ, "NEXUS_AUDIT_CONTENT_DAYS", 30),
    )


def read_content_mode(environ: Mapping[str, str]) -> Literal["never", "off", "on"]:
    """`never`, `off` (only agents that ask for it), or `on` (every call)."""
    mode = environ.get("NEXUS_AUDIT_CONTENT", "").strip().lower() or "off"
    for known in CONTENT_MODES:
        if mode == known:
            return known
    raise errors.Invalid(f"NEXUS_AUDIT_CONTENT cannot be {mode[:20]!r}", code="setting.invalid", next_step="never, off or on")


def _days(environ: Mapping[str, str], name: str, default: float) -> float:
    """In seconds."""
    text = environ.get(name, "").strip()
    try:
        days = float(text) if text else default
    except ValueError:
        days = -1.0
    if not 0 < days <= _MOST_DAYS:
        raise errors.Invalid(
            f"{name} cannot be {text[:20]!r}", code="setting.invalid", next_step=f"a number of days, at most {_MOST_DAYS}"
        )
    return days * 86400
