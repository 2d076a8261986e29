"""The seam between desired instances and whatever runs them. Adapters: `drivers.process`; fake: `testing.drivers`."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from nexus.core import instances


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a driver can promise on this machine, as data. `missing` says in words which layer is absent and what it costs."""

    name: str
    isolation: str
    limits_memory: bool
    limits_cpu: bool
    missing: tuple[str, ...] = ()


class Driver(Protocol):
    """Runs instances. Every verb is idempotent and keyed by the instance id; a restart of the caller loses nothing.

    All verbs raise `errors.Unavailable` (code `driver.unreachable`) when the node cannot be asked, and nothing of a vendor's.
    """

    async def capabilities(self) -> Capabilities: ...

    async def start(self, spec: instances.InstanceSpec) -> None:
        """Want this instance. Returns as soon as the node has taken the order; progress and failure are statuses.

        Starting an id that runs is a no-op; an id that failed is tried again. The node restarts a crashed instance by
        itself, with growing pauses, until it is stopped.
        """
        ...

    async def stop(self, instance_id: str, *, grace_s: float) -> None:
        """No longer want it: finish runs in hand for `grace_s` seconds, then kill, then forget it. Absent is success."""
        ...

    async def statuses(self) -> Sequence[instances.InstanceStatus]:
        """Every instance the node knows, running or failed; one that is absent here does not exist."""
        ...

    def watch(self) -> AsyncIterator[instances.InstanceStatus]:
        """Status changes from now on. Only a wake-up: after any error the caller reads `statuses` again."""
        ...

    async def log_tail(self, instance_id: str, *, lines: int) -> Sequence[str]:
        """The last lines the instance wrote; empty when unknown."""
        ...
