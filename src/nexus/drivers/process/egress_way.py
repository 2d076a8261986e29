"""An instance's way out as `instance` sees it: opened for as long as the instance lives, across its restarts, when it has one."""

from collections.abc import Mapping

from nexus.drivers.process import egress_broker, egress_meter, egress_rules, paths, probe
from nexus.kit import egress

_WHOSE_S = 0.5


class WayOut:
    """`open` and `close` may be called again. `note` is the agent's log."""

    def __init__(self, at: paths.InstancePaths, allowance: egress.Allowance, *, note: egress_broker.Note) -> None:
        self._paths = at
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

    async def _whose(self) -> egress_meter.Caller:
        """The one run in hand, as the worker says; of several nobody knows which one connects."""
        runs = await probe.runs_in_hand(self._paths.socket, timeout_s=_WHOSE_S)
        return egress_meter.Caller(*runs[0]) if len(runs) == 1 else egress_meter.Caller()
