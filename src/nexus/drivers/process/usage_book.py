"""Reads what each session of a node has used into its ledger: whenever control asks, and when a session or an instance ends.

A supervisor that takes over from one that was killed counts CPU and memory from its own start on, and the network from what the
other had noted down; what was used between the last question and the kill is not charged.
"""

import time
from collections.abc import Iterable
from typing import Any, Protocol

from nexus.core import ids, instances, usage
from nexus.core.sessions import SessionPhase, SessionStatus
from nexus.drivers.process import egress_way, rounds, session, usage_ledger


class Counted(Protocol):
    """An instance, as far as it is asked here."""

    spec: instances.InstanceSpec
    way: egress_way.WayOut


class Book:
    def __init__(self) -> None:
        self._ledger = usage_ledger.Ledger(ids.new_id("epo"))
        self._opened_at = time.time()
        self._bases: dict[tuple[str, str], float] = {}
        self._resting: set[tuple[str, str]] = set()

    async def tell(
        self, after: str, sessions: Iterable[tuple[str, session.Session]], counted: Iterable[Counted]
    ) -> dict[str, Any]:
        """See `Ledger.tell`; with everything that was used until now. `sessions` with the ids of their instances; those that rest
        are asked once."""
        async for instance_id, one in rounds.in_slices(list(sessions)):
            key = (instance_id, one.id)
            if one.phase is SessionPhase.LIVE:
                self._resting.discard(key)
            elif key in self._resting:
                continue
            else:
                self._resting.add(key)
            one.measure()
            self._note(one.status())
        for each in counted:
            self.close_instance(each, ended=False)
        return self._ledger.tell(after)

    def end_session(self, status: SessionStatus) -> None:
        self._note(status, ended=True)
        self._bases.pop((status.instance_id, status.session_id), None)
        self._resting.discard((status.instance_id, status.session_id))

    def close_instance(self, one: Counted, *, ended: bool = True) -> None:
        spec = one.spec
        for session_id, tally in one.way.sessions().items():
            row = usage.UsageRow(
                instance_id=spec.id,
                session_id=session_id,
                part=usage.Part.NETWORK,
                began_at=0.0,
                tenant=spec.tenant,
                agent=spec.agent,
                environment=spec.environment,
                version=spec.version,
                bytes_in=tally.received,
                bytes_out=tally.sent,
            )
            self._ledger.put(row, ended=ended)

    def _note(self, status: SessionStatus, *, ended: bool = False) -> None:
        taken_over = status.created_at < self._opened_at
        base = self._bases.setdefault((status.instance_id, status.session_id), status.usage.cpu_s) if taken_over else 0.0
        row = usage.UsageRow(
            instance_id=status.instance_id,
            session_id=status.session_id,
            part=usage.Part.WORKER,
            began_at=self._opened_at if taken_over else status.created_at,
            tenant=status.tenant,
            agent=status.agent,
            environment=status.environment,
            version=status.version,
            cpu_s=round(max(0.0, status.usage.cpu_s - base), 6),
            memory_byte_seconds=status.usage.memory_byte_seconds,
        )
        self._ledger.put(row, ended=ended)
