"""Starts instances under an OCI runtime (gVisor's `runsc`) in place of our own box, behind the same `Running`.

The runtime's foreground process stands for the instance: in its control groups before it begins, signalled like a worker, and
all of it ends with it. Called by `box_launcher` for a version with a runtime class.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nexus.core import errors
from nexus.drivers.process import cgroups, launcher, oci_bundle, sandbox

_FIRST_IN = 'read _ && exec "$@"'  # waits for one line, by which time it stands in its groups; the rest of its input stays
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
    """Raises `Unavailable` where this machine cannot run it, `Invalid` for settings that the runtime class does not go with."""
    if not wish.runtime:
        return
    if os.geteuid() != 0 or find(wish.runtime) is None:
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
    if wish.network == "egress" or wish.zygote:
        raise errors.Invalid(
            f"{agent} cannot have the runtime class {wish.runtime} with these settings",
            code="isolation.runtime_unfit",
            phase="start",
            cause="a way out of its own (network: egress) and a box for each session are not made inside a container runtime",
            next_step="write hosting.network: isolated or host, and hosting.isolation: instance, or leave runtime_class out",
        )


def launch(plan: launcher.Plan, group: cgroups.Group, *, owner: int, limits: Mapping[str, tuple[int, int]]) -> launcher.Running:
    """Raises `errors.NexusError` when there is no such runtime, OSError when nothing can be started."""
    wish = plan.wish
    assert wish is not None
    check(wish, plan.instance_id)
    runtime, program = RUNTIMES[wish.runtime], find(wish.runtime)
    assert program is not None
    bundle, state = wish.stage.with_name("bundle"), wish.stage.with_name("oci")
    shutil.rmtree(state, ignore_errors=True)
    config = oci_bundle.render(
        wish,
        instance_id=plan.instance_id,
        owner=owner,
        command=plan.command,
        limits=limits,
        root=bundle / "rootfs",
    )
    oci_bundle.write(bundle, config, wish, owner=owner)
    network = "host" if wish.network == "host" else "none"
    options = [option.format(network=network) for option in runtime.options]
    command = [program, "--root", str(state), *options, "run", "--bundle", str(bundle), plan.instance_id]
    child = _start(command, plan, group)
    return launcher.Running(
        launcher.Handle(
            pid=child.pid,
            born=launcher.born(child.pid) or 0,
            boot=launcher.boot_id(),
            groups=group.paths(),
            instance_id=plan.instance_id,
        ),
        pidfd=os.pidfd_open(child.pid),
        group=group,
        child=child,
    )


def _start(command: Sequence[str], plan: launcher.Plan, group: cgroups.Group) -> "subprocess.Popen[bytes]":
    child = subprocess.Popen(
        ["/bin/sh", "-c", _FIRST_IN, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=plan.output,
        stderr=plan.output,
        cwd="/",
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        start_new_session=True,
        umask=0o022,
    )
    group.join(child.pid)
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
        pipe.write(b"go\n" + json.dumps(dict(plan.environ)).encode() + b"\n")
    return child
