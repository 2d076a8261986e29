"""All sessions of a node: finds the one that is asked for, and sees to it that idle ones are frozen, stopped and ended.

Called by `session_api`, and by `Node`, whose instances add their hosts.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nexus.core import errors, names
from nexus.core.sessions import SessionPhase, SessionPlace, SessionStatus
from nexus.drivers.process import session, session_host, session_paths, session_room, session_watch
from nexus.kit import guard
from nexus.wire import problem as problem_wire

_LOG = logging.getLogger(__name__)
_LOOK_S = 1.0
_STOP_S = 10.0


class Table:
    """`run` looks after idle sessions until it is cancelled."""

    def __init__(self, sockets: Path) -> None:
        self._sockets = sockets
        self._hosts: dict[str, session_host.Host] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, host: session_host.Host) -> None:
        self._hosts[host.spec.id] = host

    def remove(self, host: session_host.Host) -> None:
        if self._hosts.get(host.spec.id) is host:
            del self._hosts[host.spec.id]

    # verbs

    async def place(self, instances: Sequence[str], session_id: str, *, homes: Sequence[str] = ()) -> SessionPlace:
        """Where the session lives, made on the first of these instances that can; where it lives already wins over their order.
        On `homes` it is found, never made.

        Raises `NotFound` (`session.no_instance`), `Exhausted` (`session.too_many`), `Unavailable` (`session.not_started`).
        """
        if not names.is_session_id(session_id):
            raise errors.Invalid("this is not a session id", code="session.invalid_id")
        known = [host for one in instances if (host := self._hosts.get(one)) is not None]
        others = [host for one in homes if (host := self._hosts.get(one)) is not None]
        home = next((host for host in (*known, *others) if session_id in host.sessions), None)
        refused: errors.NexusError | None = None
        for host in [home] if home is not None else known:
            try:
                return await host.place(session_id)
            except (errors.Exhausted, errors.Unavailable, errors.NotFound) as error:
                refused = refused or error
        raise refused or errors.NotFound(
            "none of these instances runs here with sessions of their own",
            code="session.no_instance",
            next_step="try again in a second; nexus status shows the instances",
            retry_after_s=1.0,
        )

    def statuses(
        self, *, instance: str | None = None, tenant: str | None = None, agent: str | None = None, environment: str | None = None
    ) -> list[SessionStatus]:
        found = self._select(instance=instance, tenant=tenant, agent=agent, environment=environment)
        return [one.status() for host in found for one in host.sessions.values()]

    def get(self, instance_id: str, session_id: str) -> session.Session:
        host = self._hosts.get(instance_id)
        one = host.sessions.get(session_id) if host is not None else None
        if one is None:
            raise errors.NotFound(
                f"there is no session {session_id[:80]!r} on {instance_id[:40]}",
                code="session.not_found",
                next_step="list them with: nexus ai agent sessions list",
            )
        return one

    async def kill_all(self, *, tenant: str, agent: str, environment: str | None) -> int:
        """The emergency brake: every worker of these sessions is dead when this returns."""
        found = [
            one
            for host in self._select(tenant=tenant, agent=agent, environment=environment)
            for one in list(host.sessions.values())
        ]
        for one in found:
            if one.process is not None:
                one.process.kill()
        await asyncio.gather(*(one.kill() for one in found))
        return len(found)

    def last_end(self, instance_id: str, session_id: str, *, since: float) -> Mapping[str, object] | None:
        host = self._hosts.get(instance_id)
        return host.last_end(session_id, since=since) if host is not None else None

    # care

    def sweep(self, boxes: set[str]) -> None:
        """Remove sockets that belong to no session and to none of these boxes."""
        known = {path for host in self._hosts.values() for path in host.sockets()}
        orders = {session_paths.orders_name(box) for box in boxes}
        for file in self._sockets.iterdir() if self._sockets.is_dir() else ():
            if file not in known and file.name not in orders:
                file.unlink(missing_ok=True)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self.look()
            except OSError as error:
                _LOG.warning("cannot look after idle sessions: %s", error)

    async def look(self) -> None:
        """One look at every session."""
        if not any(host.sessions for host in self._hosts.values()):
            return
        connections = await asyncio.to_thread(session_watch.count_connections, self._sockets)
        now = time.time()
        for host in list(self._hosts.values()):
            host.connections = connections
            for one in list(host.sessions.values()):
                if not one.busy:
                    self._move(host, one, connections.get(str(one.path), 0), now)
            self._make_room(host, session_room.read_memory())

    def _move(self, host: session_host.Host, one: session.Session, connected: int, now: float) -> None:
        if one.phase is SessionPhase.LIVE:
            quiet_s = host.policy.freeze_after_s
            one.note_activity(now, connected=connected > 0, quiet_s=quiet_s, least=session_watch.IDLE_CPU)
        move = session_watch.decide(
            one.phase,
            host.policy,
            idle_s=now - one.active_at,
            expired=now >= one.expires_at,
            connected=connected > 0 and now < one.expires_at + host.policy.max_lifetime_s,
        )
        if move != "keep":
            guard.spawn(self._carry_out(move, one), name=f"{move} {one.id}", owner=self._tasks)

    def _make_room(self, host: session_host.Host, memory: session_room.Memory) -> None:
        residents = host.sessions.values()
        for one in session_room.choose_to_stop(residents, host.connections, most=host.policy.most, memory=memory):
            guard.spawn(self._carry_out("stop", one), name=f"stop {one.id}", owner=self._tasks)
        for one in session_room.choose_to_forget(residents):
            guard.spawn(self._carry_out("end", one), name=f"forget {one.id}", owner=self._tasks)

    async def _carry_out(self, move: session_watch.Move, one: session.Session) -> None:
        try:
            if move == "freeze":
                await one.freeze(lambda: bool(session_watch.count_connections(self._sockets).get(str(one.path))))
            elif move == "stop":
                await one.stop(grace_s=_STOP_S, keep=True)
            else:
                await one.stop(grace_s=_STOP_S)
        except errors.NexusError as error:
            _LOG.warning("session %s: %s failed: %s", one.id, move, problem_wire.render(error))

    def _select(
        self, *, instance: str | None = None, tenant: str | None = None, agent: str | None = None, environment: str | None = None
    ) -> Iterator[session_host.Host]:
        for host in list(self._hosts.values()):
            spec = host.spec
            wanted = ((instance, spec.id), (tenant, spec.tenant), (agent, spec.agent), (environment, spec.environment))
            if all(asked in (None, "", found) for asked, found in wanted):
                yield host
