"""An instance's way out as `instance` sees it: opened for as long as the instance lives, across its restarts, when it has one."""

from collections.abc import Callable, Mapping
from pathlib import Path

from nexus.drivers.process import egress_broker, egress_meter, egress_rules, paths, probe
from nexus.kit import egress

_WHOSE_S = 0.5
FindSession = Callable[[int], tuple[str, Path] | None]


def _none(pid: int) -> None:
    """An instance without sessions of their own."""


class WayOut:
    """`open` and `close` may be called again. `note` is the agent's log, `sessions` tells a process's session."""

    def __init__(
        self, at: paths.InstancePaths, allowance: egress.Allowance, *, note: egress_broker.Note, sessions: FindSession = _none
    ) -> None:
        self._paths = at
        self._sessions = sessions
        self._allowance = allowance
        self._note = note
        self._way: egress_broker.Way | None = None

    async def open(self, options: Mapping[str, object]) -> None:
        if self._way is not None or options.get("network") != "egress":
            return
        limit = options.get("network_limit")
        policy = egress_broker.Policy(
            rules=egress_rules.read_rules(options),
            allowance=self._allowance,
            limit=float(limit) if isinstance(limit, int | float) else None,
        )
        way = egress_broker.Way(self._paths.way, policy, note=self._note, whose=self._whose)
        await way.open()
        self._way = way

    async def close(self) -> None:
        way, self._way = self._way, None
        if way is not None:
            await way.close()

    def counts(self) -> dict[str, int]:
        """In the names of `core.instances.Usage`."""
        total = self._way.meter.total.to_json() if self._way is not None else {}
        return {f"network_{name}": count for name, count in total.items()}

    def to_json(self) -> Mapping[str, object]:
        """All counts, by run too; empty when there is no way out."""
        return self._way.meter.to_json() if self._way is not None else {}

    async def _whose(self, pid: int) -> egress_meter.Caller:
        """The session by the kernel's word, and the one run in hand by the worker's; of several nobody knows which connects."""
        session_id, socket = self._sessions(pid) or ("", self._paths.socket)
        runs = await probe.runs_in_hand(socket, timeout_s=_WHOSE_S)
        run_id, told = runs[0] if len(runs) == 1 else ("", "")
        return egress_meter.Caller(run_id, session_id or told)
