"""Where the process driver keeps things: one folder for each instance, one for each package, log files by tenant and agent."""

import contextlib
import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from nexus.core import errors, ids, instances, names
from nexus.kit import home

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class InstancePaths:
    """Everything of one instance lies under `root`, so removing `root` forgets it. The socket lies in the home's run folder."""

    root: Path
    socket: Path

    @property
    def record(self) -> Path:
        return self.root / "status.json"

    @property
    def shared(self) -> Path:
        """The one folder where worker and supervisor meet: the worker may do there what it likes."""
        return self.socket.with_suffix("")

    @property
    def way(self) -> Path:
        """Where the egress broker listens for this instance: its box may look into it and no other's."""
        return self.socket.with_suffix(".way")

    @property
    def worker_socket(self) -> Path:
        """Where the worker listens. What is found there is looked at before it becomes `socket`."""
        return self.shared / "sock"

    @property
    def worker_status(self) -> Path:
        return self.shared / "worker.json"

    @property
    def stage(self) -> Path:
        """An empty folder: the root of the box is mounted on it, out of our sight."""
        return self.root / "root"

    @property
    def output(self) -> Path:
        return self.root / "output.fifo"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"


def of_instance(at: home.Home, instance_id: str) -> InstancePaths:
    return InstancePaths(at.instances / instance_id, at.instance_socket(instance_id))


def package(at: home.Home, digest: str) -> Path:
    return at.packages / f"{digest}.tar.gz"


def source(at: home.Home, digest: str) -> Path:
    return at.root / "sources" / digest


def agent_logs(at: home.Home, tenant: str, agent: str) -> Path:
    return at.logs / "agents" / tenant / agent


def open_regular(path: Path) -> int:
    """A descriptor to read a file that an agent may have tampered with. OSError for links, FIFOs, devices; never blocks."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def read_regular(path: Path, *, most: int) -> bytes:
    """At most `most` bytes of such a file."""
    fd = open_regular(path)
    try:
        return os.read(fd, most)
    finally:
        os.close(fd)


def publish_socket(at: InstancePaths) -> None:
    """Move the worker's socket out of its reach, to where the gateways connect. OSError unless a socket was there.

    Moved first and judged then: nobody can exchange it any more, for a link to another's socket say.
    """
    with contextlib.suppress(FileNotFoundError):
        os.replace(at.worker_socket, at.socket)
    if not stat.S_ISSOCK(at.socket.lstat().st_mode):
        at.socket.unlink()
        raise OSError(errno.ENOTSOCK, "the worker put something else where its socket belongs", str(at.worker_socket))


def check_instance_id(value: str) -> str:
    """The id itself, or `Invalid` (code `instance.bad_id`): ids become file names here."""
    if ids.is_id(value, ids.INSTANCE):
        return value
    raise errors.Invalid(
        f"{value[:80]!r} is not an instance id", code="instance.bad_id", next_step="use an id such as ins_01kaf3…"
    )


def check_spec(spec: instances.InstanceSpec) -> instances.InstanceSpec:
    """The spec itself, or `Invalid`: every part that becomes a path or an environment variable is checked here."""
    check_instance_id(spec.id)
    names.parse_label(spec.agent)
    names.parse_label(spec.tenant, "tenant")
    if not _DIGEST.fullmatch(spec.package_digest):
        raise errors.Invalid("a package digest is 64 hexadecimal digits", code="instance.bad_spec", cause="package_digest")
    for name, value in [*spec.env.items(), *spec.secrets.items()]:
        if not name or "=" in name or "\0" in name or "\0" in str(value):
            raise errors.Invalid(
                f"{name[:80]!r} cannot be an environment variable",
                code="instance.bad_environment",
                cause="a name is not empty and holds no '='; neither name nor value holds a NUL",
                next_step="rename it in hosting.env or secrets",
            )
    return spec
