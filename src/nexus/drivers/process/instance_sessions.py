"""What an instance whose sessions have workers of their own does differently: its program is a zygote, and it has a `Host`.

`Instance` calls these at the turning points of its life; for an instance that serves all sessions itself nothing happens here.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from nexus.core import instances
from nexus.drivers.process import (
    box_entry,
    cgroups,
    launcher,
    log_writer,
    paths,
    session_host,
    session_launch,
    session_paths,
    session_plans,
    session_table,
)
from nexus.kit.home import Home

_LOOK_S = 0.25


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all instances of a node share for this."""

    home: Home
    layout: cgroups.Layout
    table: session_table.Table


class InstanceSessions:
    """`log` gives the instance's log, which is open whenever a session lives."""

    def __init__(
        self,
        spec: instances.InstanceSpec,
        shared: Shared,
        at: paths.InstancePaths,
        log: Callable[[], log_writer.LogWriter],
        draw: session_launch.Draw,
        launch: session_launch.Launch,
    ) -> None:
        self._spec, self._shared, self._at, self._log = spec, shared, at, log
        self._draw, self._launch = draw, launch
        self._host: session_host.Host | None = None

    @property
    def host(self) -> session_host.Host:
        if self._host is None:
            self._host = session_host.Host(
                self._shared.home,
                self._spec,
                layout=self._shared.layout,
                log=self._log,
                draw=self._draw,
                launch=self._launch,
            )
            self._shared.table.add(self._host)
        return self._host

    def renew(self, spec: instances.InstanceSpec) -> None:
        self._spec = spec
        if self._host is not None:
            self._host.renew(spec)

    @contextlib.contextmanager
    def plan(self, drawn: session_launch.Drawn) -> Iterator[launcher.Plan]:
        """The plan to launch: the same one, or that of a zygote, for which a socket is open meanwhile."""
        plan, layers = drawn.plan, drawn.layers
        if not session_plans.is_isolated(self._spec) or plan.wish is None:
            yield plan
            return
        box = f"{self._spec.id}.{session_paths.new_name()}"
        orders = session_paths.listen(self.host.at.orders(box), kind=socket.SOCK_SEQPACKET)
        refusal = session_plans.reason_against_forking(self._spec.options, layers, is_root=os.geteuid() == 0)
        boxes = session_plans.render_box(
            plan.wish, self._at, layers, self.host.policy, layout=self._shared.layout, allowed=plan.allowed
        )
        environ = session_launch.without_token(plan.environ)
        boxes |= {"refusal": refusal, "handed": bool(plan.wish.runtime)}
        environ |= {"NEXUS_ORDERS": str(box_entry.EXTRA), "NEXUS_SESSION_BOX": json.dumps(boxes)}
        with orders:
            yield dataclasses.replace(
                plan,
                wish=dataclasses.replace(plan.wish, zygote=refusal is None),
                command=[plan.command[0], "-P", str(drawn.ready.worker_copy / "session_boot.py")],
                environ=environ,
                extra=orders.fileno(),
                box=box,
            )

    async def begin(self, running: launcher.Running) -> None:
        """The zygote is ready. Raises `Unavailable`."""
        if running.handle.box:
            await self.host.open(running.handle.box, cgroups.from_paths(running.handle.groups))

    async def zygote_gone(self) -> launcher.Exit:
        """Returns when the zygote has ended; never for an instance without one."""
        gone = self._host.gone if self._host is not None else None
        await (gone or asyncio.Event()).wait()
        return launcher.Exit()

    def leave(self, running: launcher.Running) -> bool:
        """Whether sessions still live in this box, which is then not to be closed."""
        return self._host is not None and self._host.leave_box(running)

    async def adopt(self, adopt: Callable[[launcher.Handle], launcher.Running | None]) -> set[str]:
        """After another supervisor: the names of control groups that its sessions and their boxes use."""
        if not session_plans.is_isolated(self._spec):
            return set()
        used = await self.host.adopt()
        for handle in self.host.box_handles():
            if (running := adopt(handle)) is not None:
                self.host.adopt_box(running)
                used.add(handle.box)
        return used

    async def close(self, left_s: Callable[[], float]) -> None:
        """End every session. `left_s` tells how long they may take from now; whoever is in a hurry makes it less."""
        host = self._host
        if host is None:
            return
        closing = asyncio.ensure_future(host.close(grace_s=max(0.0, left_s())))
        try:
            while not closing.done():
                await asyncio.wait({closing}, timeout=_LOOK_S)
                if left_s() <= 0:
                    host.hurry()
            closing.result()
        finally:
            closing.cancel()
        self._shared.table.remove(host)
        self._host = None

    async def detach(self) -> None:
        if self._host is not None:
            await self._host.detach()
            self._shared.table.remove(self._host)

    def find(self, pid: int) -> tuple[str, Path] | None:
        """Id and socket of the session that a process of its box belongs to."""
        one = self._host.find_session(pid) if self._host is not None else None
        return (one.id, one.path) if one is not None else None

    def count(self, usage: instances.Usage) -> instances.Usage:
        """With how many sessions there are at this moment."""
        if self._host is None:
            return usage if not session_plans.is_isolated(self._spec) else dataclasses.replace(usage, sessions=0, saved=0)
        alive = self._host.count_alive()
        return dataclasses.replace(usage, sessions=alive, saved=len(self._host.sessions) - alive)

    def add_usage(self, usage: instances.Usage) -> instances.Usage:
        """With what its sessions use."""
        if self._host is None:
            return usage
        counted = [one.counted() for one in self._host.sessions.values()]
        return dataclasses.replace(
            usage,
            cpu_s=round(usage.cpu_s + self._host.spent_cpu_s + sum(cpu for cpu, _ in counted), 3),
            memory_bytes=usage.memory_bytes + sum(memory for _, memory in counted),
            active_runs=self._host.busy(),
        )
