"""How dispatchers take tasks in hand: one statement with SKIP LOCKED, or two where limits of lanes hold over all dispatchers.

`paused` and `limited` hold lanes as `tenant/agent/environment`, and what one key has of a lane, where keys are limited, as
`tenant/agent/environment#key`: each such share stands in a line of its own, and the shares of a lane take turns.
"""

from collections.abc import Collection
from typing import Any

from nexus.ports import task_store
from nexus.stores.postgres import task_link, task_rows

# Walks the queue's index from lane to lane (a "loose index scan"), so its cost grows with the lanes, not with the tasks.
# A task that was put off is due when its time has come, or when the clock was set back behind the moment it was put off.
# The picked ids go into an array, of which the kept plan expects few; a join expected a tenth of the table, and read it all.
# `me` holds the owner against burial; it is empty, and nothing is claimed, for one that is buried, and on the short way while
# any lane is limited.
_CLAIM = """
    WITH RECURSIVE me AS (
      SELECT nexus_now() AS now FROM task_owners
      WHERE owner = %(owner)s AND (%(counted)s OR NOT EXISTS (SELECT 1 FROM task_lanes)) FOR KEY SHARE
    ), lanes AS (
      (SELECT tenant, agent, environment, share FROM tasks WHERE phase = 'pending' AND NOT parked AND EXISTS (SELECT 1 FROM me)
        ORDER BY tenant, agent, environment, share LIMIT 1)
      UNION ALL
      SELECT following.* FROM lanes, LATERAL (
        SELECT t.tenant, t.agent, t.environment, t.share FROM tasks t
        WHERE t.phase = 'pending' AND NOT t.parked
          AND (t.tenant, t.agent, t.environment, t.share) > (lanes.tenant, lanes.agent, lanes.environment, lanes.share)
        ORDER BY t.tenant, t.agent, t.environment, t.share LIMIT 1) following
    ), limits AS (
      SELECT name, most FROM unnest(%(limited)s::text[], %(most)s::int[]) AS v(name, most)
    ), named AS (
      SELECT *, tenant || '/' || agent || '/' || environment AS lane,
        tenant || '/' || agent || '/' || environment || '#' || share AS part FROM lanes
    ), open AS (
      SELECT named.*, of_lane.most AS lane_most, of_part.most AS part_most, count(*) OVER (PARTITION BY tenant) AS siblings,
        count(*) OVER (PARTITION BY lane) AS parts, row_number() OVER (PARTITION BY lane ORDER BY random()) AS part_turn,
        row_number() OVER (PARTITION BY tenant ORDER BY random()) AS turn
      FROM named LEFT JOIN limits of_lane ON of_lane.name = lane LEFT JOIN limits of_part ON of_part.name = part
      WHERE lane <> ALL(%(paused)s::text[]) AND part <> ALL(%(paused)s::text[])
    ), busy AS (
      SELECT tenant, agent, environment, share, count(*) AS running FROM tasks
      WHERE phase = 'running' AND EXISTS (SELECT 1 FROM open) GROUP BY 1, 2, 3, 4
    ), hosts AS (
      SELECT tenant, sum(running)::bigint AS running FROM busy GROUP BY 1
    ), whole AS (
      SELECT tenant, agent, environment, sum(running)::bigint AS running FROM busy GROUP BY 1, 2, 3
    ), room AS (
      SELECT open.*, greatest(0, least(
        (greatest(0, coalesce(open.lane_most, %(per_lane)s::bigint) - coalesce(whole.running, 0)) + parts - part_turn) / parts,
        CASE WHEN share <> '' THEN coalesce(open.part_most, 1) - coalesce(busy.running, 0) END,
        %(per_tenant)s::bigint - coalesce(hosts.running, 0),
        greatest(1, %(limit)s::bigint / (SELECT count(DISTINCT tenant) FROM open) / open.siblings)))::bigint AS free
      FROM open LEFT JOIN busy USING (tenant, agent, environment, share)
        LEFT JOIN whole USING (tenant, agent, environment) LEFT JOIN hosts USING (tenant)
      ORDER BY open.turn, random()
    ), picked AS (
      SELECT t.id FROM room CROSS JOIN LATERAL (
        SELECT q.id FROM tasks q
        WHERE q.phase = 'pending' AND NOT q.parked
          AND q.tenant = room.tenant AND q.agent = room.agent AND q.environment = room.environment AND q.share = room.share
          AND (q.available_at IS NULL OR q.available_at <= (SELECT now FROM me) OR q.deferred_at > (SELECT now FROM me))
          AND (q.expires_at IS NULL OR q.expires_at > (SELECT now FROM me))
        ORDER BY q.priority DESC, q.number LIMIT room.free FOR UPDATE SKIP LOCKED) t
      LIMIT %(limit)s
    )
    UPDATE tasks SET phase = 'running', owner = %(owner)s, fence = fence + 1, attempt = attempt + 1, expires_at = end_by,
      started_at = coalesce(started_at, me.now), message = CASE WHEN deferrals = 0 THEN message END
    FROM me WHERE tasks.id = ANY (ARRAY(SELECT id FROM picked))
    RETURNING tasks.id, tenant, agent, environment, principal, body, fence, attempt, strikes, deferrals, max_attempts,
      last_seq, session_id, traceparent, number, retry, run_timeout_s, end_by - me.now AS remaining_s, waits
"""
# Holding the rows of limited lanes makes dispatchers count them one after the other; who does not get a row leaves its lane.
_LANES = """
    SELECT l.tenant || '/' || l.agent || '/' || l.environment || CASE WHEN l.share = '' THEN '' ELSE '#' || l.share END AS name,
      l.concurrency, held.tenant IS NOT NULL AS held
    FROM task_lanes l LEFT JOIN (SELECT tenant, agent, environment, share FROM task_lanes FOR UPDATE SKIP LOCKED) held
      USING (tenant, agent, environment, share)
"""
_ARE_LIMITED = "SELECT EXISTS (SELECT 1 FROM task_lanes) AS limited"
_SAME = (
    "id", "principal", "body", "fence", "attempt", "strikes", "deferrals", "max_attempts", "last_seq", "session_id",
    "traceparent", "run_timeout_s", "waits",
)  # fmt: skip
_DOING = "claiming tasks"


class Claims:
    """Remembers whether any lane is limited; wrong for one claim at most, and never towards too many."""

    def __init__(self, link: task_link.Link) -> None:
        self._link = link
        self._limited = False

    async def take(
        self, owner: str, *, limit: int, per_lane: int, per_tenant: int, paused: Collection[task_store.Lane]
    ) -> list[task_store.Claim]:
        """See `TaskStore.claim`. Nothing when the owner has been buried."""
        values = {
            "owner": owner,
            "limit": limit,
            "per_lane": per_lane,
            "per_tenant": per_tenant,
            "paused": [_name(lane) for lane in paused],
        }
        if not self._limited:
            found = await self._link.rows(_DOING, _CLAIM, {**values, "counted": False, "limited": [], "most": []})
            if found or not (await self._link.rows(_DOING, _ARE_LIMITED, {}))[0]["limited"]:
                return _read(found)
        return _read(await self._counted(values))

    async def _counted(self, values: dict[str, Any]) -> list[task_link.Row]:
        async with self._link.begin(_DOING) as connection:
            lanes = await task_link.rows(connection, _LANES, {})
            self._limited = bool(lanes)
            more = {
                "counted": True,
                "paused": [*values["paused"], *(lane["name"] for lane in lanes if not lane["held"])],
                "limited": [lane["name"] for lane in lanes],
                "most": [lane["concurrency"] for lane in lanes],
            }
            return await task_link.rows(connection, _CLAIM, values | more)


def _read(rows: list[task_link.Row]) -> list[task_store.Claim]:
    return [
        task_store.Claim(
            lane=task_store.Lane(tenant=row["tenant"], agent=row["agent"], environment=row["environment"]),
            retry=task_rows.read_retry(row["retry"]),
            remaining_s=None if row["remaining_s"] is None else max(0.0, row["remaining_s"]),
            **{name: row[name] for name in _SAME},
        )
        for row in sorted(rows, key=lambda row: row["number"])
    ]


def _name(lane: task_store.Lane) -> str:
    return f"{lane.tenant}/{lane.agent}/{lane.environment}"
