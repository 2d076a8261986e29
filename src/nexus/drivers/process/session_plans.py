"""What a version's settings say of its sessions, as the supervisor uses it: pure."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nexus.core import instances
from nexus.drivers.process import cgroups, limits, paths, sandbox

ISOLATION, SESSION = "isolation", "session"
_MOST = 10_000
_COVERED = ("/tmp/", "/dev/shm/")  # noqa: S108 - where a session has folders of its own
_WORK_BYTES = 256 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long sessions live and what is kept of them; durations in seconds. `warm` None: as many spares as the demand wants."""

    freeze_after_s: float = 10.0
    stop_after_s: float = 900.0
    max_lifetime_s: float = 8 * 3600.0
    persist: bool = True
    work_bytes: int = _WORK_BYTES
    retention_s: float = 30 * 86400.0
    most: int = _MOST
    warm: int | None = None


def parse_policy(options: Mapping[str, object]) -> Policy:
    """From an instance's options; what is absent or of another kind is the default."""
    given = options.get("session")
    if not isinstance(given, Mapping):
        return Policy()
    usual = Policy()

    def number(name: str, default: float) -> float:
        value = given.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default

    warm = given.get("warm")
    return Policy(
        freeze_after_s=number("freeze_after_s", usual.freeze_after_s),
        stop_after_s=number("stop_after_s", usual.stop_after_s),
        max_lifetime_s=number("max_lifetime_s", usual.max_lifetime_s),
        persist=given.get("persist") is not False,
        work_bytes=int(number("work_bytes", usual.work_bytes)),
        retention_s=number("retention_s", usual.retention_s),
        most=int(number("most", usual.most)),
        warm=warm if isinstance(warm, int) and not isinstance(warm, bool) else None,
    )


def is_isolated(spec: instances.InstanceSpec) -> bool:
    return spec.options.get(ISOLATION) == SESSION


def find_refusal(options: Mapping[str, object]) -> str | None:
    """Why sessions of a version are forked nowhere, whatever its zygote says; None when the zygote and the machine decide."""
    if runtime := options.get("runtime_class"):
        return f"the runtime class {runtime} gives each a kernel of its own"
    return "the version is marked untrusted" if options.get("untrusted") is True else None


def reason_against_forking(options: Mapping[str, object], layers: sandbox.Layers, *, is_root: bool) -> str | None:
    """Why sessions are not forked here but started from the beginning, each in a whole box; None when they are forked."""
    if (refusal := find_refusal(options)) is not None:
        return refusal
    if not layers.boxed:
        return "this machine has no namespaces for the box"
    if is_root and "user" not in layers.held:
        return "this machine has no user namespaces"
    return None


def plan_work_bytes(wish: sandbox.Wish, policy: Policy, allowed: limits.Limits) -> int:
    """How large a session's work directory may be, which lies in memory."""
    return min(policy.work_bytes, allowed.disk_bytes, sandbox.temporary_bytes(wish.memory_bytes))


def render_box(
    wish: sandbox.Wish,
    at: paths.InstancePaths,
    layers: sandbox.Layers,
    policy: Policy,
    *,
    layout: cgroups.Layout,
    allowed: limits.Limits,
) -> dict[str, Any]:
    """The plan of a session's box, as `box_session` reads it. Its folders lie in memory, so none has more than half of it."""
    temporary = sandbox.temporary_bytes(wish.memory_bytes)
    seen = [str(path) for path in (*wish.read, at.work)]
    return {
        "layers": sorted(layers.held),
        "restricted": wish.context == sandbox.RESTRICTED,
        "isolated": wish.network != "host",
        "way": str(wish.way) if wish.way is not None else "",
        "pins": [list(pin) for pin in wish.pins] if wish.way is not None else [],
        "inner": sandbox.INNER_USER,
        "work": str(at.work),
        "work_bytes": plan_work_bytes(wish, policy, allowed),
        "tmp_bytes": temporary,
        "shm_bytes": temporary,
        "below": [path for path in sandbox.outermost(seen) if path.startswith(_COVERED) and os.path.exists(path)],
        "hide": [str(at.shared), str(at.temporary), str(at.output)],
        "landlock_write": [str(at.work), *sandbox.OWN_TREES],
        "read_only_root": wish.read_only_root,
        "processes": 0 if layout.has("pids") else allowed.processes,
    }
