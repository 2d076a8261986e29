"""`ports.step_store.StepStore` on PostgreSQL."""

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from nexus.core import errors
from nexus.ports import step_store
from nexus.stores.postgres import task_session

_TASK = sa.text(
    """
    SELECT t.retry, s.status, s.attempt, s.head, s.body,
      (SELECT count(*) FROM run_steps c WHERE c.task_id = t.id) AS count
    FROM tasks t LEFT JOIN run_steps s ON s.task_id = t.id AND s.key = :key
    WHERE t.id = :id AND t.tenant = :tenant AND t.agent = :agent AND t.environment = :environment
      AND t.phase = 'running' AND t.attempt = :attempt
    """
)
_OPEN = sa.text(
    """
    INSERT INTO run_steps (task_id, key, position, kind, status, attempt, sent_at)
    VALUES (:id, :key, :position, :kind, 'sent', :attempt, nexus_now())
    ON CONFLICT (task_id, key) DO UPDATE SET status = 'sent', attempt = excluded.attempt, head = NULL, body = NULL,
      sent_at = excluded.sent_at, done_at = NULL WHERE run_steps.attempt <= excluded.attempt
    """
)
_CLOSE = sa.text(
    """
    UPDATE run_steps SET status = 'done', head = :head, body = :body, done_at = nexus_now()
    WHERE task_id = :id AND key = :key AND attempt = :attempt AND status = 'sent'
    """
)
_FORGET = sa.text("DELETE FROM run_steps WHERE task_id = :id AND key = :key AND attempt = :attempt AND status = 'sent'")


class PostgresStepStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def open(self, place: step_store.Place, *, live: bool, most: int) -> step_store.Opened:
        async with task_session.begin(self._engine, "recording a call") as connection:
            row = (await connection.execute(_TASK, _values(place))).mappings().first()
            if row is None:
                raise fenced(place)
            if row["status"] == "done" and not live:
                answer = step_store.Answer(head=row["head"], body=bytes(row["body"]))
                return step_store.Opened(status="done", answer=answer)
            lost = row["status"] == "sent" and row["attempt"] < place.attempt
            if lost and row["retry"] is not None and json.loads(row["retry"]).get("unknown") == "fail":
                raise errors.Conflict(
                    "an earlier attempt made this call and its outcome is not known",
                    code="step.unknown_outcome",
                    cause="hosting.tasks.unknown is fail",
                    next_step="find out what came of it, then submit a new task, or set hosting.tasks.unknown to repeat",
                )
            if row["count"] >= most:
                raise errors.Exhausted(f"a task may record {most} calls", code="step.too_many")
            await _open(connection, place, position=row["count"])
            return step_store.Opened(status="unknown" if lost else "new")

    async def close(self, place: step_store.Place, answer: step_store.Answer | None) -> bool:
        values = {"id": place.task_id, "key": place.key, "attempt": place.attempt}
        async with task_session.begin(self._engine, "recording an answer") as connection:
            if answer is None:
                return bool((await connection.execute(_FORGET, values)).rowcount)
            values |= {"head": answer.head, "body": answer.body}
            return bool((await connection.execute(_CLOSE, values)).rowcount)


async def _open(connection: AsyncConnection, place: step_store.Place, *, position: int) -> None:
    values = {"id": place.task_id, "key": place.key, "kind": place.kind, "attempt": place.attempt, "position": position}
    if not (await connection.execute(_OPEN, values)).rowcount:
        raise fenced(place)


def _values(place: step_store.Place) -> dict[str, Any]:
    return {
        "id": place.task_id,
        "key": place.key,
        "attempt": place.attempt,
        "tenant": place.lane.tenant,
        "agent": place.lane.agent,
        "environment": place.lane.environment,
    }


def fenced(place: step_store.Place) -> errors.Conflict:
    return errors.Conflict(
        f"attempt {place.attempt} of task {place.task_id[:64]} is not the one that runs",
        code="task.fenced",
        next_step="stop: another attempt has taken over",
    )
