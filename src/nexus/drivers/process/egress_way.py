"""An instance's way out as `instance` sees it: opened for as long as the instance lives, across its restarts, when it has one.

What was counted is noted down every second, so that a supervisor that is killed loses no more than that of it.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from nexus.drivers.process import egress_broker, egress_meter, egress_rules, paths, probe, session_record
from nexus.kit import egress, guard

_LOG = logging.getLogger(__name__)
_WHOSE_S = 0.5
_NOTE_S = 1.0
_NOTED = "network.json"
_MOST_BYTES = 4 * 1024**2
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
        self._last: Mapping[str, egress_meter.Tally] = {}
        self._tasks: set[asyncio.Task[None]] = set()

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
        self._restore(way.meter)
        await way.open()
        self._way = way
        guard.spawn(self._note_down(way.meter), name=f"counts of {self._paths.root.name}", owner=self._tasks)

    async def close(self) -> None:
        way, self._way = self._way, None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if way is not None:
            await way.close()
            self._last = way.meter.sessions()
            self._write(_render(way.meter))

    def _restore(self, meter: egress_meter.Meter) -> None:
        with contextlib.suppress(FileNotFoundError):
            try:
                meter.restore(json.loads(paths.read_regular(self._paths.root / _NOTED, most=_MOST_BYTES)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                _LOG.warning("what %s sent and received before cannot be read: %r", self._paths.root.name, error)

    async def _note_down(self, meter: egress_meter.Meter) -> None:
        noted = meter.total.to_json()
        while True:
            await asyncio.sleep(_NOTE_S)
            if (now := meter.total.to_json()) != noted:
                noted = now
                await asyncio.to_thread(self._write, _render(meter))

    def _write(self, noted: bytes) -> None:
        try:
            session_record.write_private(self._paths.root / _NOTED, noted)
        except OSError as error:
            _LOG.warning("cannot note down what %s sent and received: %s", self._paths.root.name, error.strerror)

    def runs(self, ids: Collection[str]) -> Mapping[str, egress_meter.Tally]:
        """What connections of these runs sent and received."""
        found = self._way.meter.runs() if self._way is not None else {}
        return {run_id: found[run_id] for run_id in ids if run_id in found}

    def sessions(self) -> Mapping[str, egress_meter.Tally]:
        """What each session sent and received in all."""
        return self._way.meter.sessions() if self._way is not None else self._last

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


def _render(meter: egress_meter.Meter) -> bytes:
    told = meter.to_json()
    return json.dumps({name: told[name] for name in ("total", "sessions")}).encode()
