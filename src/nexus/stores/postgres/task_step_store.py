"""`ports.step_store.StepStore` on PostgreSQL."""

import json
from collections.abc import Sequence
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from nexus.core import errors
from nexus.ports import step_store
from nexus.stores.postgres import task_link, task_session

_TASK = sa.text(
    """
    SELECT t.retry, t.replay_of, s.status, s.attempt, s.head, s.body,
      (SELECT count(*) FROM run_steps c WHERE c.task_id = t.id) AS count
    FROM tasks t LEFT JOIN run_steps s ON s.task_id = t.id AND s.key = :key
    WHERE t.id = :id AND t.tenant = :tenant AND t.agent = :agent AND t.environment = :environment
      AND t.phase = 'running' AND t.attempt = :attempt AND (CAST(:session AS text) IS NULL OR t.session_id = :session)
    """
)
_OPEN = sa.text(
    """
    INSERT INTO run_steps (task_id, key, position, kind, status, attempt, request, sent_at)
    VALUES (:id, :key, :position, :kind, 'sent', :attempt, :request, nexus_now())
    ON CONFLICT (task_id, key) DO UPDATE SET status = 'sent', attempt = excluded.attempt, head = NULL, body = NULL,
      request = excluded.request, sent_at = excluded.sent_at, done_at = NULL WHERE run_steps.attempt <= excluded.attempt
    """
)
_CLOSE = """
    UPDATE run_steps SET status = 'done', head = %(head)s, body = %(body)b, done_at = nexus_now()
    WHERE task_id = %(id)s AND key = %(key)s AND attempt = %(attempt)s AND status = 'sent' RETURNING 1
    """
_ORIGINAL = sa.text("SELECT head, body FROM run_steps WHERE task_id = :source AND key = :key AND status = 'done'")
_REPLAYED = sa.text(
    """
    INSERT INTO run_steps (task_id, key, position, kind, status, attempt, request, sent_at)
    VALUES (:id, :key, :position, :kind, :status, :attempt, :request, nexus_now())
    ON CONFLICT (task_id, key) DO NOTHING
    """
)
_RECORDED = sa.text(
    """
    SELECT kind, key, status, request FROM (
      SELECT kind, key, status, request, sent_at AS at, position FROM run_steps WHERE task_id = :id
      UNION ALL
      SELECT 'ask', key, CASE status WHEN 'open' THEN 'sent' ELSE 'done' END, convert_to(question, 'UTF8'), opened_at, 0
        FROM task_asks WHERE task_id = :id) AS made
    ORDER BY at, position, key
    """
)
_FORGET = """
    DELETE FROM run_steps WHERE task_id = %(id)s AND key = %(key)s AND attempt = %(attempt)s AND status = 'sent' RETURNING 1
    """


class PostgresStepStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine, self._link = engine, task_link.of(engine)

    async def open(
        self,
        place: step_store.Place,
        *,
        live: bool,
        most: int,
        repeat: bool = False,
        request: bytes | None = None,
    ) -> step_store.Opened:
        async with task_session.begin(self._engine, "recording a call") as connection:
            row = (await connection.execute(_TASK, _values(place))).mappings().first()
            if row is None:
                raise fenced(place)
            if row["replay_of"] is not None:
                found = await _original(connection, row["replay_of"], place.key)
                status: Literal["done", "absent"] = "absent" if found is None else "done"
                await note_replayed(connection, place, status=status, request=request, position=row["count"])
                return step_store.Opened(status=status, answer=found)
            if row["status"] == "done" and not live:
                answer = step_store.Answer(head=row["head"], body=bytes(row["body"]))
                return step_store.Opened(status="done", answer=answer)
            lost = row["status"] == "sent" and row["attempt"] < place.attempt
            policy = "repeat" if repeat or row["retry"] is None else json.loads(row["retry"]).get("unknown")
            if lost and policy == "ask":
                return step_store.Opened(status="ask", attempt=row["attempt"])
            if lost and policy == "fail":
                raise errors.Conflict(
                    "an earlier attempt made this call and its outcome is not known",
                    code="step.unknown_outcome",
                    cause="hosting.tasks.unknown is fail",
                    next_step="find out what came of it, then submit a new task, or set hosting.tasks.unknown to repeat",
                )
            if row["count"] >= most:
                raise errors.Exhausted(f"a task may record {most} calls", code="step.too_many")
            await _open(connection, place, position=row["count"], request=request)
            return step_store.Opened(status="unknown" if lost else "new")

    async def recorded(self, task_id: str) -> Sequence[step_store.Recorded]:
        async with task_session.begin(self._engine, "reading a recording") as connection:
            return [
                step_store.Recorded(
                    kind=row.kind, key=row.key, status=row.status, request=None if row.request is None else bytes(row.request)
                )
                for row in await connection.execute(_RECORDED, {"id": task_id})
            ]

    async def close(self, place: step_store.Place, answer: step_store.Answer | None) -> bool:
        values: dict[str, Any] = {"id": place.task_id, "key": place.key, "attempt": place.attempt}
        if answer is None:
            return bool(await self._link.rows("taking a call back", _FORGET, values))
        return bool(await self._link.rows("recording an answer", _CLOSE, {**values, "head": answer.head, "body": answer.body}))


async def _original(connection: AsyncConnection, task_id: str, key: str) -> step_store.Answer | None:
    row = (await connection.execute(_ORIGINAL, {"source": task_id, "key": key})).first()
    return None if row is None else step_store.Answer(head=row.head, body=bytes(row.body))


async def note_replayed(
    connection: AsyncConnection, place: step_store.Place, *, status: str, request: bytes | None, position: int
) -> None:
    """Note what a replay asked; inside the caller's transaction."""
    values = {
        "id": place.task_id,
        "key": place.key,
        "kind": place.kind,
        "attempt": place.attempt,
        "position": position,
        "status": status,
        "request": request,
    }
    await connection.execute(_REPLAYED, values)


async def _open(connection: AsyncConnection, place: step_store.Place, *, position: int, request: bytes | None) -> None:
    values = {
        "id": place.task_id,
        "key": place.key,
        "kind": place.kind,
        "attempt": place.attempt,
        "position": position,
        "request": request,
    }
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
        "session": place.session_id,
    }


def fenced(place: step_store.Place) -> errors.Conflict:
    return errors.Conflict(
        f"attempt {place.attempt} of task {place.task_id[:64]} is not the one that runs",
        code="task.fenced",
        next_step="stop: another attempt has taken over",
    )
