"""All sessions of a node: finds the one that is asked for. Who looks after them all the time is `session_care`.

Called by `session_api`, and by `Node`, whose instances add their hosts.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from nexus.core import errors, names
from nexus.core.sessions import SessionPlace, SessionStatus
from nexus.drivers.process import rounds, session, session_archive, session_care, session_host, session_paths, session_weight


def _nobody(status: SessionStatus) -> None:
    """Nobody keeps account of what sessions use."""


class Table:
    """`run` looks after idle sessions until it is cancelled. `kept`: where the work directories of sessions lie; `ended` hears of
    each session that is over, with all it used."""

    def __init__(self, sockets: Path, kept: Path, *, ended: Callable[[SessionStatus], None] = _nobody) -> None:
        self._sockets, self._kept, self._ended = sockets, kept, ended
        self._hosts: dict[str, session_host.Host] = {}
        self._care = session_care.Care(sockets, self._hosts.values)
        self._weights = session_weight.Weights(self._hosts.values)

    def add(self, host: session_host.Host) -> None:
        self._hosts[host.spec.id] = host
        host.ended = self._ended

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

    async def statuses(
        self, *, instance: str | None = None, tenant: str | None = None, agent: str | None = None, environment: str | None = None
    ) -> list[SessionStatus]:
        hosts = self._select(instance=instance, tenant=tenant, agent=agent, environment=environment)
        found = [one for host in hosts for one in host.sessions.values()]
        return [one.status() async for one in rounds.in_slices(found)]

    def everyone(self) -> Iterator[tuple[str, session.Session]]:
        """Every session with the id of its instance."""
        return ((host.spec.id, one) for host in list(self._hosts.values()) for one in list(host.sessions.values()))

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

    async def forget(self, *, tenant: str, agent: str, environment: str, session_id: str | None) -> int:
        """End a session (None: all of the agent's there) for good: its workers, and the work directory that was kept of it. How
        many had a worker."""
        found = [
            one
            for host in self._select(tenant=tenant, agent=agent, environment=environment)
            for one in list(host.sessions.values())
            if session_id in (None, one.id)
        ]
        alive = sum(one.process is not None for one in found)
        await asyncio.gather(*(one.kill() for one in found))
        session_archive.forget(self._kept, tenant=tenant, agent=agent, environment=environment, session_id=session_id)
        return alive

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
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._care.run())
            loops.create_task(self._weights.run())

    async def look(self) -> None:
        """One look at every session."""
        await self._care.look()

    def _select(
        self, *, instance: str | None = None, tenant: str | None = None, agent: str | None = None, environment: str | None = None
    ) -> Iterator[session_host.Host]:
        for host in list(self._hosts.values()):
            spec = host.spec
            wanted = ((instance, spec.id), (tenant, spec.tenant), (agent, spec.agent), (environment, spec.environment))
            if all(asked in (None, "", found) for asked, found in wanted):
                yield host
