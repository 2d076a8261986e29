"""`ports.ask_store.AskStore` on PostgreSQL. Whoever changes a question holds its task's row, so no answer slips past its task."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from nexus.core import errors, ids
from nexus.core.phases import RunPhase, is_terminal
from nexus.ports import ask_store, step_store, task_store
from nexus.stores.postgres import task_listener, task_queue, task_session, task_step_store

_SELECT = """
    SELECT a.id, a.task_id, a.tenant, t.agent, t.environment, a.key, a.question, a.shape, a.status, a.answer, a.answered_by,
      a.opened_at, a.expires_at, a.answered_at, a.told, t.phase, t.webhook_url, t.paused
    FROM task_asks a JOIN tasks t ON t.id = a.task_id
"""
_TASK = sa.text(
    """
    SELECT t.replay_of, (SELECT count(*) FROM task_asks c WHERE c.task_id = t.id) AS asked
    FROM tasks t
    WHERE t.id = :id AND t.tenant = :tenant AND t.agent = :agent AND t.environment = :environment
      AND t.phase = 'running' AND t.attempt = :attempt AND (CAST(:session AS text) IS NULL OR t.session_id = :session)
    FOR UPDATE
    """
)
_BY_KEY = sa.text(f"{_SELECT} WHERE a.task_id = :id AND a.key = :key")
# Names may be made anew with every run (those of a graph's interrupts are); the words then tell which question is meant.
_BY_WORDS = sa.text(
    f"""{_SELECT} WHERE a.task_id = :id AND a.question = :question AND a.status <> 'open'
    AND NOT EXISTS (SELECT 1 FROM run_steps s WHERE s.task_id = :replay AND s.key = a.key) ORDER BY a.opened_at, a.id LIMIT 1"""  # noqa: S608 - constants
)
_BY_ID = sa.text(f"{_SELECT} WHERE a.id = :id AND (CAST(:tenant AS text) IS NULL OR a.tenant = :tenant)")
_BY_IDS = sa.text(f"{_SELECT} WHERE a.id = ANY(CAST(:ids AS text[]))")
_PAGE = sa.text(
    f"""{_SELECT} WHERE a.tenant = :tenant
    AND (CAST(:agents AS text[]) IS NULL OR t.agent = ANY(CAST(:agents AS text[])))
    AND (CAST(:environment AS text) IS NULL OR t.environment = :environment)
    AND (a.task_id = :task OR (CAST(:task AS text) IS NULL AND a.status = 'open'
      AND t.phase IN ('pending', 'running', 'waiting')))
    ORDER BY a.opened_at, a.id LIMIT :limit"""
)
_OVERDUE = sa.text(
    f"""{_SELECT} WHERE a.status = 'open' AND a.expires_at <= nexus_now() AND t.phase IN ('pending', 'running', 'waiting')
    ORDER BY a.expires_at LIMIT :limit"""
)
_INSERT = sa.text(
    """
    INSERT INTO task_asks (id, task_id, tenant, key, question, shape, status, opened_at, expires_at)
    SELECT :ask, :id, :tenant, :key, :question, :shape, 'open', now, now + CAST(:timeout AS float8)
    FROM (SELECT nexus_now() AS now) AS moment
    """
)
_OUTBOX = sa.text(
    """
    INSERT INTO webhook_deliveries (id, task_id, tenant, url, host, status, next_at, set_at, created_at, ask_id)
    SELECT :delivery, t.id, t.tenant, t.webhook_url,
      coalesce(lower(substring(t.webhook_url FROM '^[^:]+://([^/?#]+)')), ''), 'pending', nexus_now(), nexus_now(), nexus_now(),
      :ask
    FROM tasks t WHERE t.id = :id AND t.webhook_url IS NOT NULL RETURNING id
    """
)
_COUNT = sa.text("SELECT count(*) FROM run_steps WHERE task_id = :id")
_UNUSED = sa.text("SELECT count(*) FROM task_asks WHERE task_id = :id AND status = 'answered' AND NOT used")
_USE = sa.text("UPDATE task_asks SET used = true, told = true WHERE id = :ask")
_HOLD = sa.text(
    "SELECT t.phase, t.paused, t.last_seq FROM tasks t JOIN task_asks a ON a.task_id = t.id"
    " WHERE a.id = :ask AND a.tenant = :tenant FOR UPDATE OF t"
)
_SETTLE = sa.text(
    """
    UPDATE task_asks SET status = :status, answer = :answer, answered_by = :by, answered_at = nexus_now(), told = :told
    WHERE id = :ask AND status = 'open'
    """
)
_WAKE = sa.text(
    """
    UPDATE tasks SET phase = CASE WHEN paused THEN 'waiting' ELSE 'pending' END, asking = false, available_at = NULL,
      last_seq = last_seq + 1
    WHERE id = :id
    """
)


class PostgresAskStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def open(self, place: ask_store.Place, question: ask_store.Question, *, most: int) -> ask_store.Opened | None:
        async with task_session.begin(self._engine, "asking a person") as connection:
            task = (await connection.execute(_TASK, _values(place))).first()
            if task is None:
                raise _fenced(place)
            if task.replay_of is not None:
                return await self._replayed(connection, place, question, task.replay_of)
            row = (await connection.execute(_BY_KEY, {"id": place.task_id, "key": place.key})).mappings().first()
            if row is not None:
                if row["status"] == "open":
                    return ask_store.Opened(ask=_read(row))
                await connection.execute(_USE, {"ask": row["id"]})
                return ask_store.Opened(ask=_read(row), fresh=not row["told"])
            if task.asked >= most:
                raise errors.Exhausted(f"a task may ask {most} questions", code="ask.too_many")
            await _insert(connection, place, question)
            unused = (await connection.execute(_UNUSED, {"id": place.task_id})).scalar_one()
            row = (await connection.execute(_BY_KEY, {"id": place.task_id, "key": place.key})).mappings().one()
            return ask_store.Opened(ask=_read(row), unused=int(unused))

    async def _replayed(
        self, connection: AsyncConnection, place: ask_store.Place, question: ask_store.Question, original: str
    ) -> ask_store.Opened | None:
        row = (await connection.execute(_BY_KEY, {"id": original, "key": place.key})).mappings().first()
        if row is None:
            same = {"id": original, "question": question.text, "replay": place.task_id}
            row = (await connection.execute(_BY_WORDS, same)).mappings().first()
        known = row is not None and row["status"] != "open"
        key = place.key if row is None else row["key"]
        noted = step_store.Place(lane=place.lane, task_id=place.task_id, attempt=place.attempt, kind="ask", key=key)
        count = (await connection.execute(_COUNT, {"id": place.task_id})).scalar_one()
        status, request = ("done" if known else "absent"), question.text.encode()
        await task_step_store.note_replayed(connection, noted, status=status, request=request, position=count)
        return ask_store.Opened(ask=_read(row)) if row is not None and known else None

    async def settle(
        self, tenant: str, ask_id: str, *, answer: str | None, by: str, event: str
    ) -> tuple[ask_store.Ask, bool] | None:
        async with task_session.begin(self._engine, "answering a question") as connection:
            held = (await connection.execute(_HOLD, {"ask": ask_id, "tenant": tenant})).first()
            if held is None:
                return None
            changed = False
            if not is_terminal(RunPhase(held.phase)):
                rests = held.phase == RunPhase.WAITING
                status = "expired" if answer is None else "answered"
                values = {"ask": ask_id, "status": status, "answer": answer, "by": by, "told": rests}
                changed = bool((await connection.execute(_SETTLE, values)).rowcount)
            row = (await connection.execute(_BY_ID, {"id": ask_id, "tenant": tenant})).mappings().one()
            if changed and held.phase == RunPhase.WAITING:
                await connection.execute(_WAKE, {"id": row["task_id"]})
                told = task_store.TaskEvent(seq=held.last_seq + 1, name=f"ask.{row['status']}", data=event)
                await task_queue.add_events(connection, [(row["task_id"], told)])
                if not held.paused:
                    await task_queue.notify(connection, task_listener.CHANNEL_QUEUE, [""])
            return _read(row), changed

    async def fetch(self, ask_id: str, *, tenant: str | None) -> ask_store.Ask | None:
        async with task_session.begin(self._engine, "reading a question") as connection:
            row = (await connection.execute(_BY_ID, {"id": ask_id, "tenant": tenant})).mappings().first()
            return None if row is None else _read(row)

    async def page(
        self, tenant: str, *, agents: Collection[str] | None, environment: str | None, task_id: str | None, limit: int
    ) -> Sequence[ask_store.Ask]:
        values = {
            "tenant": tenant,
            "agents": None if agents is None else sorted(agents),
            "environment": environment,
            "task": task_id,
            "limit": limit,
        }
        async with task_session.begin(self._engine, "listing questions") as connection:
            return [_read(row) for row in (await connection.execute(_PAGE, values)).mappings()]

    async def overdue(self, *, limit: int) -> Sequence[ask_store.Ask]:
        async with task_session.begin(self._engine, "looking for questions whose time is over") as connection:
            return [_read(row) for row in (await connection.execute(_OVERDUE, {"limit": limit})).mappings()]


async def fetch_all(connection: AsyncConnection, ask_ids: Sequence[str]) -> dict[str, ask_store.Ask]:
    """By id; inside the caller's transaction."""
    if not ask_ids:
        return {}
    return {row["id"]: _read(row) for row in (await connection.execute(_BY_IDS, {"ids": list(ask_ids)})).mappings()}


async def _insert(connection: AsyncConnection, place: ask_store.Place, question: ask_store.Question) -> None:
    values = {
        "ask": question.id,
        "id": place.task_id,
        "tenant": place.lane.tenant,
        "key": place.key,
        "question": question.text,
        "shape": question.shape,
        "timeout": question.timeout_s,
    }
    await connection.execute(_INSERT, values)
    outgoing = {"delivery": ids.new_id(ids.WEBHOOK), "id": place.task_id, "ask": question.id}
    if (await connection.execute(_OUTBOX, outgoing)).first() is not None:
        await task_queue.notify(connection, task_listener.CHANNEL_WEBHOOKS, [""])


def _values(place: ask_store.Place) -> dict[str, Any]:
    return {
        "id": place.task_id,
        "attempt": place.attempt,
        "tenant": place.lane.tenant,
        "agent": place.lane.agent,
        "environment": place.lane.environment,
        "session": place.session_id,
    }


def _read(row: Mapping[Any, Any]) -> ask_store.Ask:
    return ask_store.Ask(
        id=row["id"],
        task_id=row["task_id"],
        lane=task_store.Lane(tenant=row["tenant"], agent=row["agent"], environment=row["environment"]),
        key=row["key"],
        text=row["question"],
        shape=row["shape"],
        status=row["status"],
        answer=row["answer"],
        answered_by=row["answered_by"],
        opened_at=row["opened_at"],
        expires_at=row["expires_at"],
        answered_at=row["answered_at"],
        task_phase=RunPhase(row["phase"]),
        webhook_url=row["webhook_url"],
    )


def _fenced(place: ask_store.Place) -> errors.Conflict:
    return errors.Conflict(
        f"attempt {place.attempt} of task {place.task_id[:64]} is not the one that runs",
        code="task.fenced",
        next_step="stop: another attempt has taken over",
    )
