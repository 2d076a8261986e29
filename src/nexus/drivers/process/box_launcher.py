"""Starts instances in their boxes and says which layers of the box this machine offers. The one `Launcher` in use."""

import contextlib
import logging
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nexus.core import errors
from nexus.drivers.process import box_calls, box_landlock, box_start, cgroups, launcher, oci_launcher, sandbox

_LOG = logging.getLogger(__name__)


class BoxLauncher:
    """`layers` are looked for at the first launch, or by `look`; both block for some milliseconds."""

    def __init__(self, layout: cgroups.Layout, *, python: str = "", layers: sandbox.Layers | None = None) -> None:
        self._layout = layout
        self._python = python or os.path.realpath(sys.executable)  # without the look-ups of a virtual environment
        self._boot = launcher.boot_id()
        self._layers = layers

    def look(self) -> sandbox.Layers:
        """The layers in force on this machine, found once by entering a box that does nothing."""
        if self._layers is None:
            self._layers = find_layers(self._layout, python=self._python)
        return self._layers

    def launch(self, plan: launcher.Plan) -> launcher.Running:
        if plan.wish is None:
            raise errors.Internal("a launch without a box was planned", code="driver.defect", phase="start")
        oci_launcher.check(plan.wish, plan.instance_id)
        layers = self.look()
        owner = plan_owner(plan.instance_id) if layers.boxed and not plan.wish.own_user else None
        group = cgroups.make(
            self._layout,
            plan.box or plan.instance_id,
            memory_bytes=plan.memory_bytes,
            cpu_millis=plan.cpu_millis,
            processes=plan.allowed.processes + (oci_launcher.OWN_PROCESSES if plan.wish.runtime else 0),
        )
        try:
            _give(plan.wish, owner)
            if plan.wish.runtime and owner is not None:
                return oci_launcher.launch(plan, group, owner=owner, limits=self._limits(plan), python=self._python)
            drawn = sandbox.plan(
                plan.wish,
                instance_id=plan.instance_id,
                layers=layers,
                owner=owner,
                command=plan.command,
                environ=plan.environ,
                limits=self._limits(plan),
                processes=None if self._layout.has("pids") or plan.wish.zygote else plan.allowed.processes,
            )
            running = self._enter(drawn, plan, group)
        except BaseException:
            cgroups.wait_removed(group)
            raise
        return running

    def adopt(self, handle: launcher.Handle) -> launcher.Running | None:
        if handle.boot != self._boot or launcher.born(handle.pid) != handle.born:
            return None
        try:
            pidfd = os.pidfd_open(handle.pid)
        except OSError:
            return None
        if launcher.born(handle.pid) != handle.born:
            os.close(pidfd)
            return None
        return launcher.Running(handle, pidfd=pidfd, group=cgroups.from_paths(handle.groups), child=None)

    def _enter(self, drawn: dict[str, Any], plan: launcher.Plan, group: cgroups.Group) -> launcher.Running:
        try:
            first, entered = box_start.enter(drawn, python=self._python, output=plan.output, group=group, extra=plan.extra)
        except OSError as error:
            raise errors.Unavailable(
                f"cannot start a process for {plan.instance_id}",
                code="start.no_process",
                phase="start",
                cause=error.strerror or str(error),
                next_step="see what the machine is short of with: nexus doctor",
            ) from error
        if entered.failed is not None:
            raise _explain(entered.failed, plan)
        boxed = entered.init != 0
        pid = entered.init or first.pid
        handle = launcher.Handle(
            pid=pid,
            born=launcher.born(pid) or 0,
            boot=self._boot,
            groups=group.paths(),
            instance_id=plan.instance_id,
            worker=entered.worker if boxed else 0,
            box=plan.box,
        )
        return launcher.Running(handle, pidfd=os.pidfd_open(pid), group=group, child=None if boxed else first, ours=True)

    def _limits(self, plan: launcher.Plan) -> dict[str, tuple[int, int]]:
        files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1] & 0x7FFFFFFF, 65536)
        limits = {
            "RLIMIT_CORE": (0, 0),
            "RLIMIT_NOFILE": (files, files),
            "RLIMIT_FSIZE": (plan.allowed.disk_bytes, plan.allowed.disk_bytes),
        }
        if plan.memory_bytes is not None and not self._layout.has("memory"):
            limits["RLIMIT_DATA"] = (plan.memory_bytes, plan.memory_bytes)
        return limits


def plan_owner(instance_id: str) -> int | None:
    """The host's user that an instance becomes; None when we are not root and can become nobody else."""
    if os.geteuid() != 0:
        return None
    return sandbox.plan_owner(instance_id, Path("/proc/self/uid_map").read_text())


def find_layers(layout: cgroups.Layout, *, python: str = sys.executable) -> sandbox.Layers:
    """Enter an empty box with every layer, and again without each one that the machine refuses. Blocks for some 50 ms."""
    held, refused = set(sandbox.LAYERS), dict[str, str]()
    if os.geteuid() != 0:
        held.discard("user")  # the one namespace of an ordinary user's box is its user namespace
    if not box_calls.known():
        return sandbox.Layers(refused={layer: f"not written for {box_calls.machine}" for layer in held})
    while held:
        failed = _try(frozenset(held), python)
        if failed is None:
            break
        layer = str(failed["layer"]) if failed["layer"] in held else "namespaces"
        if layer not in held:
            _LOG.warning("no layer of the box works here: %s", failed["text"])
            refused |= dict.fromkeys(held, str(failed["text"]))
            held.clear()
            break
        gone = {layer, *(("user", "network") if layer == "namespaces" else ())} & held
        refused |= dict.fromkeys(gone, str(failed["text"]))
        held -= gone
    if "landlock" in held:
        refused |= sandbox.refused_scopes(box_landlock.version())
    return sandbox.Layers(held=frozenset(held), refused=refused)


def _try(held: frozenset[str], python: str) -> dict[str, Any] | None:
    """None when a program ran to its good end in a box of these layers, else what failed."""
    with tempfile.TemporaryDirectory(prefix="nexus-box-") as name, _fifo(Path(name, "output")) as output:
        stage = Path(name, "stage")
        stage.mkdir()
        needs, links = sandbox.interpreter(Path(python), private=stage)
        real = Path(python).resolve()
        owner = plan_owner(name) if "namespaces" in held else None
        wish = sandbox.Wish(
            stage=stage,
            folder=Path("/"),
            home=Path("/"),
            output=Path(name, "output"),
            read=needs,
            links=links,
            network="isolated" if "network" in held else "host",
        )
        _give(wish, owner)
        drawn = sandbox.plan(
            wish,
            instance_id="ins_trial",
            layers=sandbox.Layers(held=held),
            owner=owner,
            command=[str(real), "-I", "-S", "-c", "pass"],
            environ={},
            limits={},
        )
        try:
            first, entered = box_start.enter(drawn, python=python, output=output, group=cgroups.Group())
        except OSError as error:
            return {"layer": "namespaces", "text": error.strerror or str(error)}
        if entered.failed is not None:
            return entered.failed
        code = first.wait(box_start.ANSWER_S) if not entered.init else os.waitstatus_to_exitcode(os.waitpid(entered.init, 0)[1])
        return None if code == 0 else {"layer": "namespaces", "text": f"a program in it ends with {code}"}


def _give(wish: sandbox.Wish, owner: int | None) -> None:
    """What the instance may write belongs to its user."""
    if owner is not None:
        for path in (*wish.write, wish.output):
            os.chown(path, owner, owner, follow_symlinks=False)


def _explain(failed: dict[str, Any], plan: launcher.Plan) -> errors.NexusError:
    if failed["layer"] == "command":
        return errors.Unavailable(
            f"the worker of {plan.instance_id} cannot be started",
            code="start.no_process",
            phase="start",
            cause=str(failed["text"]),
            next_step="see what the machine is short of with: nexus doctor",
        )
    return errors.Unavailable(
        f"the box of {plan.instance_id} cannot be made",
        code="start.no_box",
        phase="start",
        cause=f"{failed['layer']}: {failed['text']}",
        next_step="see which layers of isolation this machine offers with: nexus doctor",
    )


@contextlib.contextmanager
def _fifo(path: Path) -> Iterator[int]:
    os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
