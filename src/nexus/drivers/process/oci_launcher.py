"""Starts instances and sessions under an OCI runtime (gVisor's `runsc`) in place of our own box, behind the same `Running`.

The runtime's foreground process stands for an instance: in its control groups before it begins, signalled like a worker, and all
of it ends with it. Where sockets of this machine have to be served, a keeper (`oci_keeper`) stands before it. Called by
`box_launcher` for a version with a runtime class.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexus.core import errors
from nexus.drivers.process import box_start, cgroups, launcher, oci_bundle, oci_start, sandbox

OWN_PROCESSES = 256  # threads of the runtime, its sandbox and its gofer: some 100 when the agent does nothing
_FIRST_IN = 'read _ && exec "$@"'  # waits for one line, by which time it stands in its groups; the rest of its input stays
_ENVIRON = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_MARKS = ("NEXUS_SOCKET", "NEXUS_INSTANCE_ID")
_GVISOR = (
    "--network={network}", "--ignore-cgroups", "--overlay2=none", "--host-uds=all", "--host-fifo=open",
    "--file-access-mounts=shared",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A program with the OCI command line, and its own options before the command."""

    program: str
    options: Sequence[str] = ()


RUNTIMES: Mapping[str, Runtime] = {"gvisor": Runtime(program="runsc", options=_GVISOR)}


def find(name: str) -> str | None:
    """The program of a runtime class on this machine; None when it is not installed, or the class is unknown."""
    runtime = RUNTIMES.get(name)
    return shutil.which(runtime.program) if runtime is not None else None


def check(wish: sandbox.Wish, agent: str) -> None:
    """Raises `Unavailable` where this machine cannot run it."""
    if not wish.runtime or (os.geteuid() == 0 and find(wish.runtime) is not None):
        return
    known = RUNTIMES.get(wish.runtime)
    raise errors.Unavailable(
        f"{agent} wants the runtime class {wish.runtime}, which this machine does not offer",
        code="isolation.runtime_missing",
        phase="start",
        cause="only root starts container runtimes here"
        if os.geteuid()
        else f"{known.program if known else 'it'} is not installed",
        next_step="install it (Debian: apt install runsc) and run nexus doctor, or leave hosting.runtime_class out",
    )


def launch(
    plan: launcher.Plan, group: cgroups.Group, *, owner: int, limits: Mapping[str, tuple[int, int]], python: str
) -> launcher.Running:
    """Raises `errors.NexusError` when there is no such runtime, OSError when nothing can be started."""
    wish = plan.wish
    assert wish is not None
    check(wish, plan.instance_id)
    command = _write_bundle(plan, owner=owner, limits=limits)
    inside = {
        "command": list(plan.command),
        "environ": dict(plan.environ),
        "linked": plan.extra is not None,
        "way": str(wish.way) if wish.way is not None else "",
        "pins": [list(pin) for pin in wish.pins] if wish.way is not None else [],
    }
    if plan.extra is None:
        child = _start(command, inside, plan, group)
        return _running(plan, group, pid=child.pid, child=child)
    environ = _plan_environ(plan)
    drawn = {"command": command, "environ": environ, "inside": inside}
    _, entered = box_start.enter(
        drawn, python=python, output=plan.output, group=group, extra=plan.extra, program="oci_keeper", environ=environ
    )
    if entered.failed is not None:
        raise errors.Unavailable(
            f"the box of {plan.instance_id} cannot be made",
            code="start.no_box",
            phase="start",
            cause=f"{entered.failed['layer']}: {entered.failed['text']}",
            next_step="see what the machine is short of with: nexus doctor",
        )
    return _running(plan, group, pid=entered.init, child=None)


def _running(plan: launcher.Plan, group: cgroups.Group, *, pid: int, child: "subprocess.Popen[bytes] | None") -> launcher.Running:
    handle = launcher.Handle(
        pid=pid,
        born=launcher.born(pid) or 0,
        boot=launcher.boot_id(),
        groups=group.paths(),
        instance_id=plan.instance_id,
        box=plan.box,
    )
    return launcher.Running(handle, pidfd=os.pidfd_open(pid), group=group, child=child, ours=True)


def _write_bundle(plan: launcher.Plan, *, owner: int, limits: Mapping[str, tuple[int, int]]) -> list[str]:
    """The command that runs it."""
    wish = plan.wish
    assert wish is not None
    runtime, program = RUNTIMES[wish.runtime], find(wish.runtime)
    assert program is not None
    bundle, state = wish.stage.with_name("bundle"), wish.stage.with_name("oci")
    shutil.rmtree(state, ignore_errors=True)
    starter = Path(plan.command[-1]).with_name("oci_start.py")
    config = oci_bundle.render(
        wish,
        instance_id=plan.instance_id,
        owner=owner,
        command=[plan.command[0], "-I", "-S", str(starter)],
        limits=limits,
        root=bundle / "rootfs",
    )
    oci_bundle.write(bundle, config, wish, owner=owner)
    network = "host" if wish.network == "host" else "none"
    options = [option.format(network=network) for option in runtime.options]
    return [program, "--root", str(state), *options, "run", "--bundle", str(bundle), plan.instance_id]


def _plan_environ(plan: launcher.Plan) -> dict[str, str]:
    """Variables of the runtime itself: what it needs, and whose it is, for whoever ends what a killed supervisor left."""
    return _ENVIRON | {name: plan.environ[name] for name in _MARKS if name in plan.environ}


def _start(
    command: Sequence[str], inside: Mapping[str, Any], plan: launcher.Plan, group: cgroups.Group
) -> "subprocess.Popen[bytes]":
    child = subprocess.Popen(
        ["/bin/sh", "-c", _FIRST_IN, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=plan.output,
        stderr=plan.output,
        cwd="/",
        env=_plan_environ(plan),
        start_new_session=True,
        umask=0o022,
    )
    group.join(child.pid)
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
        pipe.write(b"go\n")
        pipe.flush()
        oci_start.give(pipe.fileno(), inside)
    return child
