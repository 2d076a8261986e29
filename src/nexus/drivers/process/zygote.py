"""The supervisor's side of a zygote: connects to it, has session workers forked, and sees each into its box.

A start, as the messages go (`Z` the zygote, `K` the first process of the new box, `W` the worker that it forks):

    S → Z fork          with K's end of a socket pair, the socket it will take commands on, the FIFO to print into, and the
                        entrances of its control groups, which K goes through first
    K → S init          the kernel says its pid; K mounts what is its own, S puts it into a group of version 2 meanwhile
    S → K go            K gives up everything it could do until now, and forks W
    W → S worker        it waits for a session: `{"session", "token", …}` with the listening socket, and the kept work directory
    W → S ready         it serves
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nexus.core import errors
from nexus.drivers.process import cgroups, launcher, session_link, session_paths, session_process
from nexus.kit import guard

_START_S = 20.0
_HELLO_S = 10.0


class Spare:
    """A worker in its box that has no session yet. `bind` gives it one; `close` ends it."""

    def __init__(self, process: session_process.Process, talk: session_link.Link) -> None:
        self.process = process
        self._talk = talk

    @property
    def usable(self) -> bool:
        return not self.process.ended

    def bind(self, order: dict[str, Any], listener: int, archive: int | None) -> None:
        """Raises `session_link.Closed` when it has ended."""
        self._talk.send(order, (listener,) if archive is None else (listener, archive))

    async def ready(self) -> None:
        """Returns when it serves its session. Raises `Unavailable` (`session.not_started`)."""
        try:
            said, _ = await self._talk.receive()
        except session_link.Closed as error:
            raise failure("its worker ended before it was ready", str(error)) from error
        finally:
            self._talk.close()
        if said.get("is") != "ready":
            raise failure("its worker failed", f"{said.get('layer', '')}: {said.get('text', '')}")

    async def close(self) -> None:
        self._talk.close()
        await self.process.close()


class Zygote:
    """One imported version in its box. `reason` says why it may not be forked; `gone` is set when it has ended."""

    def __init__(self, link: session_link.Link, reason: str | None) -> None:
        self.reason = reason
        self.gone = asyncio.Event()
        self._link = link
        self._started: dict[str, session_process.Process] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        guard.spawn(self._listen(), name="zygote", owner=self._tasks)

    async def start(
        self,
        at: session_paths.SessionPaths,
        *,
        name: str,
        output: int,
        make_group: Callable[[], cgroups.Group],
        spare: bool = False,
    ) -> Spare:
        """A worker in a box of its own, waiting for a session. Raises `Unavailable` (`session.not_started`): nothing is left."""
        commands = session_paths.listen(at.commands(name), kind=socket.SOCK_SEQPACKET)
        talk, theirs = session_link.pair()
        group: cgroups.Group | None = None
        process: session_process.Process | None = None
        try:
            with commands, theirs:
                group = make_group()
                self._order_fork(name, spare, (theirs.fileno(), commands.fileno(), output), group)
            async with asyncio.timeout(_START_S):
                process = await self._see_into_box(name, talk, group)
        except BaseException as error:
            talk.close()
            with contextlib.suppress(OSError):
                at.commands(name).unlink(missing_ok=True)
            if process is not None:
                await process.close()
            elif group is not None:
                await asyncio.to_thread(cgroups.wait_removed, group)
            if isinstance(error, session_link.Closed | TimeoutError | OSError):
                raise failure("its box could not be made", str(error) or "it took too long") from error
            raise
        return Spare(process, talk)

    def _order_fork(self, name: str, spare: bool, descriptors: tuple[int, ...], group: cgroups.Group) -> None:
        """Its groups of version 1 the child enters by itself. Raises `session_link.Closed`, OSError."""
        entrances = group.open_entrances()
        try:
            self._link.send({"do": "fork", "id": name, "spare": spare}, (*descriptors, *entrances))
        finally:
            for number in entrances:
                os.close(number)

    async def _see_into_box(self, name: str, talk: session_link.Link, group: cgroups.Group) -> session_process.Process:
        keeper = await hear(talk, "init")
        try:
            pidfd = os.pidfd_open(keeper)
        except OSError as error:
            raise failure("its box ended at once", error.strerror or str(error)) from error
        handle = session_process.Handle(
            name=name, pid=keeper, born=launcher.born(keeper) or 0, boot=launcher.boot_id(), groups=group.paths()
        )
        process = session_process.Process(handle, pidfd=pidfd, group=group)
        try:
            if group.unified is not None:
                await asyncio.to_thread(group.join_version_2, keeper)
            with contextlib.suppress(session_link.Closed):  # what it said before it ended tells more
                talk.send({"go": True})
            worker = await hear(talk, "worker")
            if not (group.holds(keeper) and group.holds(worker)):
                raise failure("its box has no limits", "it is not in its control groups, whatever its zygote did instead")
        except BaseException:
            await process.close()
            raise
        process.handle = session_process.Handle(
            name=name, pid=keeper, born=handle.born, boot=handle.boot, worker=worker, groups=handle.groups
        )
        self._started[name] = process
        return process

    def close(self) -> None:
        """Forget it; it goes on, or has ended."""
        for task in list(self._tasks):
            task.cancel()
        self._link.close()

    async def _listen(self) -> None:
        """Until it has ended: how the boxes ended that it started."""
        try:
            while True:
                said, _ = await self._link.receive()
                process = self._started.pop(str(said.get("id")), None) if said.get("is") == "ended" else None
                if process is not None and isinstance(code := said.get("code"), int):
                    process.note_code(code)
        except session_link.Closed:
            self.gone.set()


async def connect(path: Path) -> Zygote:
    """Raises `session_link.Closed` or TimeoutError when there is no zygote."""
    link = await session_link.connect(path)
    try:
        async with asyncio.timeout(_HELLO_S):
            said, _ = await link.receive()
    except BaseException:
        link.close()
        raise
    reason = said.get("reason")
    return Zygote(link, reason if isinstance(reason, str) else None)


def failure(what: str, cause: str) -> errors.Unavailable:
    return errors.Unavailable(
        f"the session cannot be started: {what}",
        code="session.not_started",
        phase="start",
        cause=cause,
        next_step="see what the machine is short of with: nexus doctor",
        retry_after_s=1.0,
    )


async def hear(talk: session_link.Link, wanted: str) -> int:
    """The pid of the process that says it. Raises `Unavailable` when it says something else, `Closed`."""
    said, pid = await talk.receive()
    if said.get("is") != wanted:
        raise failure("its box could not be made", f"{said.get('layer', '')}: {said.get('text', '')}")
    return pid
