"""Looks after every session of a node, once a second: idle ones are frozen, stopped and ended, process bombs are ended, room is
kept for sessions to come. Called by `session_table`.

With thousands alive this is most of what an idle supervisor does, beside the starts that it must not delay: so the round is
spread over its second (`rounds`), and asks the kernel about a session only what may change what becomes of it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from nexus.core import errors
from nexus.core.sessions import SessionPhase
from nexus.drivers.process import limits, rounds, session, session_host, session_room, session_watch
from nexus.kit import guard
from nexus.wire import problem as problem_wire

_LOG = logging.getLogger(__name__)
_ROUND_S = 1.0
_STOP_S = 10.0
_BETWEEN_S = 0.0005
_STOPS_AT_ONCE, _TURN_S = 3, 0.5


class Care:
    """`run` looks after them until it is cancelled."""

    def __init__(self, sockets: Path, hosts: Callable[[], Iterable[session_host.Host]]) -> None:
        self._hosts = hosts
        self._census = session_watch.Census(sockets)
        self._next_freeze = 0.0
        self._leaving: set[str] = set()
        self._stopping = asyncio.Semaphore(_STOPS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        while True:
            try:
                if any(host.sessions for host in self._hosts()):
                    await self.look(over_s=_ROUND_S)
                else:
                    await asyncio.sleep(_ROUND_S)
            except OSError as error:
                _LOG.warning("cannot look after idle sessions: %s", error)
                await asyncio.sleep(_ROUND_S)

    async def look(self, *, over_s: float = 0.0) -> None:
        """One look at every session."""
        connections = await self._census.count()
        hosts = list(self._hosts())
        for host in hosts:
            host.connections = connections
        self._make_room(hosts)
        most = {host: limits.read_limits(host.spec).processes for host in hosts}
        found = [(host, one) for host in hosts for one in host.sessions.values()]

        def visit(each: tuple[session_host.Host, session.Session]) -> None:
            host, one = each
            if not one.busy and one.phase is not SessionPhase.ENDED:
                self._move(host, one, connected=str(one.path) in connections)
            if one.process is not None and not one.process.frozen:
                one.process.look_at_processes(most[host])

        await rounds.go_round(found, visit, over_s=over_s)

    def _move(self, host: session_host.Host, one: session.Session, *, connected: bool) -> None:
        now, policy = time.time(), host.policy
        if one.phase is SessionPhase.LIVE:
            one.note_activity(now, connected=connected, quiet_s=policy.freeze_after_s, least=session_watch.IDLE_CPU)
        move = session_watch.decide(
            one.phase,
            policy,
            idle_s=now - one.active_at,
            expired=now >= one.expires_at,
            connected=connected and now < one.expires_at + policy.max_lifetime_s,
        )
        if move != "keep":
            self._begin(move, one)

    def _make_room(self, hosts: Iterable[session_host.Host]) -> None:
        memory = session_room.read_memory()
        for host in hosts:
            for one in host.choose_to_stop(memory):
                self._begin("stop", one)
            for one in host.choose_to_forget():
                self._begin("end", one)

    def _begin(self, move: session_watch.Move, one: session.Session) -> None:
        address = str(one.path)
        if address not in self._leaving:
            self._leaving.add(address)
            guard.spawn(self._carry_out(move, one, address), name=f"{move} {one.id}", owner=self._tasks)

    async def _carry_out(self, move: session_watch.Move, one: session.Session, address: str) -> None:
        try:
            if move == "freeze":
                await self._await_turn()
                await one.freeze(lambda: self._is_connected(one))
            else:
                await self._stop(one, keep=move == "stop")
        except errors.NexusError as error:
            _LOG.warning("session %s: %s failed: %s", one.id, move, problem_wire.render(error))
        finally:
            self._leaving.discard(address)

    async def _stop(self, one: session.Session, *, keep: bool) -> None:
        """In its turn: the ends of many at once would hold up whoever starts meanwhile. Not any more when it was used again."""
        idle_since = one.active_at
        async with self._stopping:
            if one.active_at != idle_since and time.time() < one.expires_at:
                return
            stopping = asyncio.ensure_future(one.stop(grace_s=_STOP_S, keep=keep))
            await asyncio.wait({stopping}, timeout=_TURN_S)  # one that takes its time to end holds up no other
        await stopping

    async def _await_turn(self) -> None:
        """Thousands that fall silent together are not frozen in one breath."""
        now = asyncio.get_running_loop().time()
        self._next_freeze = max(now, self._next_freeze + _BETWEEN_S)
        await asyncio.sleep(self._next_freeze - now)

    async def _is_connected(self, one: session.Session) -> bool:
        return str(one.path) in await self._census.count()
