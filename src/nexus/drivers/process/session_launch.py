"""A session's worker started from the beginning, each in a whole box of its own: for versions that cannot be forked, or may not.

Slower than a fork by what the interpreter's start and the imports take, and `show` says so and why.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nexus.core import errors, instances
from nexus.drivers.process import (
    box_entry,
    launcher,
    preparation,
    sandbox,
    session_link,
    session_paths,
    session_plans,
    session_process,
    zygote,
)

BESIDE_S = 30.0  # for the interpreter and the box, beside what the import may take


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A launch of the instance as it would be if it served all sessions itself, to be changed for one session. `output` is not
    open yet."""

    plan: launcher.Plan
    layers: sandbox.Layers
    ready: preparation.Prepared


Draw = Callable[[], Awaitable[Drawn]]
Launch = Callable[[launcher.Plan], launcher.Running]


def plan_alone(
    spec: instances.InstanceSpec, drawn: Drawn, folder: Path, name: str, *, policy: session_plans.Policy
) -> launcher.Plan:
    """`drawn` for one session, whose own things lie in `folder`, and in memory what it writes."""
    plan, wish = drawn.plan, drawn.plan.wish
    if wish is None:
        raise errors.Internal("a launch without a box was planned", code="driver.defect", phase="start")
    work, temporary = folder / "work", folder / "tmp"
    boxed = drawn.layers.boxed
    environ = without_token(plan.environ) | {
        "HOME": str(work),
        "TMPDIR": plan.environ["TMPDIR"] if boxed else str(temporary),
        "NEXUS_ORDERS": str(box_entry.EXTRA),
        "NEXUS_SESSION_BOX": json.dumps({"alone": True, "isolated": wish.network != "host", "handed": bool(wish.runtime)}),
    }
    if wish.runtime:
        environ["NEXUS_LOOP"] = "asyncio"  # the loop that takes connections from a socket that is none of the kernel's
    environ.pop("NEXUS_STATUS_FILE", None)
    return dataclasses.replace(
        plan,
        instance_id=f"{spec.id}.{name}",
        command=[plan.command[0], "-P", str(drawn.ready.worker_copy / "session_boot.py")],
        environ=environ,
        wish=dataclasses.replace(
            wish,
            stage=folder / "root",
            home=work,
            output=folder / "output",
            write=[work, temporary],
            zygote=False,
            home_bytes=session_plans.plan_work_bytes(wish, policy, plan.allowed),
        ),
        box=f"{spec.id}.{name}",
    )


def without_token(environ: Any) -> dict[str, str]:
    """No token of the instance is in a session's worker, nor in what it is forked from."""
    return {name: value for name, value in environ.items() if name != "NEXUS_TOKEN"}


async def start(
    at: session_paths.SessionPaths,
    plan: launcher.Plan,
    folder: Path,
    *,
    name: str,
    launch: Launch,
    timeout_s: float,
    spare: bool = False,
) -> zygote.Spare:
    """A worker that waits for a session, as a zygote would make it. Raises `Unavailable` (`session.not_started`)."""
    commands = session_paths.listen(at.commands(name), kind=socket.SOCK_SEQPACKET)
    talk, theirs = session_link.pair()
    running: launcher.Running | None = None
    process: session_process.Process | None = None
    try:
        with commands, theirs:
            talk.send({"do": "keep", "spare": spare}, (commands.fileno(),))
            running = await asyncio.to_thread(launch, dataclasses.replace(plan, extra=theirs.fileno()))
        async with asyncio.timeout(timeout_s):
            await zygote.hear(talk, "init")
            worker = await zygote.hear(talk, "worker")
        has_number = plan.wish is None or not plan.wish.runtime  # another kernel numbers its processes for itself
        process = _take_over(running, name, worker if has_number else 0)
    except BaseException as error:
        talk.close()
        if running is not None:
            await running.close()
        with contextlib.suppress(OSError):
            at.commands(name).unlink(missing_ok=True)
        if isinstance(error, session_link.Closed | TimeoutError | OSError):
            raise zygote.failure("its worker did not start", str(error) or f"not within {timeout_s:g} s") from error
        raise
    return zygote.Spare(process, talk)


def _take_over(running: launcher.Running, name: str, worker: int) -> session_process.Process:
    handle = session_process.Handle(
        name=name,
        pid=running.handle.pid,
        born=running.handle.born,
        boot=running.handle.boot,
        worker=worker,
        groups=running.handle.groups,
    )
    return session_process.Process(handle, pidfd=os.pidfd_open(handle.pid), group=running.release(), ours=True)


def make_folders(folder: Path) -> None:
    """Those of one session, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("work", "tmp", "root"):
        (folder / name).mkdir(parents=True, mode=0o700)
