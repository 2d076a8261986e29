"""How a task is read from its row, and a submission made one. Shared by everything that touches the table of tasks."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from nexus.core.phases import RunPhase
from nexus.ports import task_store

COLUMNS = """
    t.id, t.number, t.tenant, t.agent, t.environment, t.principal, t.phase, t.attempt, t.last_seq, t.progress, t.message,
    t.session_id, t.output, t.metadata, t.error, t.cancel_requested, t.created_at, t.started_at, t.finished_at,
    t.webhook_url, t.idempotency_key, t.digest, t.priority, t.end_by, t.paused, t.dead, t.origin, t.asking, t.replay_of,
    CASE WHEN t.parked THEN t.available_at END AS run_at,
    d.status AS delivery_status, d.attempts AS delivery_attempts, d.last_error, d.last_status
"""
SELECT = f"SELECT {COLUMNS} FROM tasks t LEFT JOIN webhook_deliveries d ON d.task_id = t.id AND d.ask_id IS NULL"  # noqa: S608 - constants
_FETCH = sa.text(f"{SELECT} WHERE t.tenant = :tenant AND t.id = :id")
_SAME = (
    "id", "number", "principal", "attempt", "last_seq", "progress", "message", "session_id", "output", "metadata", "error",
    "cancel_requested", "created_at", "started_at", "finished_at", "webhook_url", "idempotency_key", "digest", "priority",
    "end_by", "paused", "dead", "origin", "asking", "replay_of", "run_at",
)  # fmt: skip


async def fetch(connection: AsyncConnection, tenant: str, task_id: str) -> task_store.Task | None:
    row = (await connection.execute(_FETCH, {"tenant": tenant, "id": task_id})).mappings().first()
    return None if row is None else read(row)


def read(row: Mapping[Any, Any]) -> task_store.Task:
    """A task from a row of `COLUMNS`."""
    delivery = None
    if row["delivery_status"] is not None:
        delivery = task_store.Delivery(
            status=row["delivery_status"],
            attempts=row["delivery_attempts"],
            last_error=row["last_error"],
            last_status=row["last_status"],
        )
    return task_store.Task(
        lane=task_store.Lane(tenant=row["tenant"], agent=row["agent"], environment=row["environment"]),
        phase=RunPhase(row["phase"]),
        delivery=delivery,
        **{name: row[name] for name in _SAME},
    )


def made(entry: task_store.Submission, row: Mapping[Any, Any], *, phase: RunPhase) -> task_store.Task:
    """A submission that was just stored. `row` holds what the database chose."""
    return task_store.Task(
        id=entry.id,
        number=row["number"],
        lane=entry.lane,
        principal=entry.principal,
        phase=phase,
        attempt=int(phase is RunPhase.RUNNING),
        last_seq=0,
        progress=None,
        message=None,
        session_id=entry.session_id,
        output=None,
        metadata=None,
        error=None,
        cancel_requested=False,
        created_at=row["created_at"],
        started_at=None,
        finished_at=None,
        webhook_url=entry.webhook_url,
        idempotency_key=entry.idempotency_key,
        digest=entry.digest,
        priority=entry.priority,
        run_at=row["available_at"],
        end_by=row["end_by"],
        origin=entry.origin,
    )


def write_retry(retry: task_store.Retry | None) -> str | None:
    if retry is None:
        return None
    return json.dumps(dataclasses.asdict(retry))


def read_retry(text: str | None) -> task_store.Retry | None:
    if text is None:
        return None
    value = json.loads(text)
    return task_store.Retry(**{**value, "kinds": tuple(value["kinds"])})
