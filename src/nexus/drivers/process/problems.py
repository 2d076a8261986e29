"""What is told when an instance does not start, ends, or stops answering: pure, with phase, cause and next step."""

import signal
from collections.abc import Mapping, Sequence

from nexus.core import errors, instances
from nexus.drivers.process import launcher, limits, oci_launcher, sandbox

_LOGS = "see the whole log with: nexus ai agent logs {agent}"


def start_timeout(spec: instances.InstanceSpec, *, doing: str, tail: Sequence[str]) -> errors.NexusError:
    return errors.AgentFailed(
        f"{spec.agent} did not become ready within {spec.start_timeout_s:g} s",
        code="start.timeout",
        phase="start",
        cause=f"it was still {doing or 'starting'}",
        next_step="do slow work on first use, or raise hosting.start_timeout",
        log_tail=tail,
    )


def ended_while_starting(spec: instances.InstanceSpec, exit_: launcher.Exit, tail: Sequence[str]) -> errors.NexusError:
    if exit_.excess is not None:
        return exceeded(spec, exit_.excess, tail, phase="start")
    if exit_.out_of_memory:
        return out_of_memory(spec, tail, phase="start")
    return errors.AgentFailed(
        f"{spec.agent} ended before it was ready",
        code="start.exited",
        phase="start",
        cause=exit_.text(),
        next_step=_LOGS.format(agent=spec.agent),
        log_tail=tail,
    )


def ended(spec: instances.InstanceSpec, exit_: launcher.Exit, tail: Sequence[str]) -> errors.NexusError:
    if exit_.excess is not None:
        return exceeded(spec, exit_.excess, tail, phase="run")
    if exit_.out_of_memory:
        return out_of_memory(spec, tail, phase="run")
    return errors.AgentFailed(
        f"an instance of {spec.agent} ended by itself and is started again",
        code="instance.exited",
        phase="run",
        cause=exit_.text(),
        next_step=_LOGS.format(agent=spec.agent),
        log_tail=tail,
    )


def out_of_memory(spec: instances.InstanceSpec, tail: Sequence[str], *, phase: str) -> errors.NexusError:
    limit = spec.memory_bytes or 0
    return errors.Exhausted(
        f"an instance of {spec.agent} was ended because it used more than its {_size(limit)} of memory",
        code="instance.out_of_memory",
        phase=phase,
        cause=f"hosting.memory allows {_size(limit)}",
        next_step=f"use less, or raise the limit: nexus ai agent deploy {spec.agent} --memory {_size(2 * limit)}",
        log_tail=tail,
        extra={"limit_bytes": limit},
    )


def exceeded(spec: instances.InstanceSpec, excess: limits.Excess, tail: Sequence[str], *, phase: str) -> errors.NexusError:
    """The node ended it: for a process bomb, or for what it wrote."""
    if excess.what == "processes":
        return errors.Exhausted(
            f"an instance of {spec.agent} was ended because it went on making processes at its limit of {excess.limit}",
            code="instance.out_of_processes",
            phase=phase,
            cause=f"it had {excess.seen} processes and threads; hosting.processes allows {excess.limit}",
            next_step=f"start fewer, or raise the limit: nexus ai agent deploy {spec.agent} --process-limit {2 * excess.limit}",
            log_tail=tail,
            extra={"limit": excess.limit, "seen": excess.seen},
        )
    allowed = _size(excess.limit) if excess.what == "disk" else str(excess.limit)
    wrote = {
        "disk": f"it had written {excess.seen / 1024**2:.0f} MiB, and hosting.disk allows {allowed}",
        "files": f"it had made {excess.seen} files, and hosting.disk allows {allowed}, one for {limits.BYTES_PER_FILE} bytes",
        "depth": f"it had made folders more than {allowed} deep",
    }[excess.what]
    more = _size(2 * limits.read_limits(spec).disk_bytes)
    return errors.Exhausted(
        f"an instance of {spec.agent} was ended because of what it wrote",
        code="instance.out_of_disk",
        phase=phase,
        cause=f"{wrote}; its work directory is emptied",
        next_step=f"write less, or raise the limit: nexus ai agent deploy {spec.agent} --disk-limit {more}",
        log_tail=tail,
        extra={"limit": excess.limit, "seen": excess.seen},
    )


def session_ended(spec: instances.InstanceSpec, *, code: int | None, out_of_memory_: bool) -> errors.NexusError:
    """Why the worker of one session ended unasked; `code` None when nobody could tell."""
    if out_of_memory_:
        return out_of_memory(spec, (), phase="run")
    exit_ = launcher.Exit(code=code) if code is None or code <= 128 else launcher.Exit(signal=code - 128)
    return errors.AgentFailed(
        f"the worker of a session of {spec.agent} ended by itself",
        code="session.exited",
        phase="run",
        cause=exit_.text() if code is None or code <= 128 or code - 128 in signal.valid_signals() else f"exit code {code}",
        next_step=_LOGS.format(agent=spec.agent),
    )


def no_socket(spec: instances.InstanceSpec, reason: str, tail: Sequence[str]) -> errors.NexusError:
    return errors.AgentFailed(
        f"{spec.agent} says that it is ready and does not listen",
        code="start.no_socket",
        phase="start",
        cause=reason,
        next_step="the worker listens on the unix socket named by NEXUS_SOCKET; leave that file to it",
        log_tail=tail,
    )


def check_isolation(spec: instances.InstanceSpec, wish: sandbox.Wish, layers: sandbox.Layers, *, missing: Sequence[str]) -> None:
    """`Unavailable` when this machine cannot give what was asked for: an untrusted version, or a network of its own.

    `missing` is everything the node lacks, control groups too.
    """
    if wish.network != "host":  # a network of its own has no abstract sockets of others
        missing = [line for line in missing if not line.startswith(sandbox.COSTS[sandbox.SCOPES])]
    if wish.untrusted and missing:
        raise errors.Unavailable(
            f"{spec.agent} is marked untrusted and may not run on this machine",
            code="isolation.layer_missing",
            phase="start",
            cause="; ".join(missing),
            next_step="see what to change with: nexus doctor; or run it on a machine that has every layer",
        )
    oci_launcher.check(wish, spec.agent)
    if wish.network != "host" and "network" not in layers.held:
        raise errors.Unavailable(
            f"{spec.agent} wants a network of its own, which this machine does not offer",
            code="isolation.layer_missing",
            phase="start",
            cause=layers.refused.get("network", "no network namespace"),
            next_step="write hosting.network: host, or run it where network namespaces may be made (nexus doctor)",
        )


def unhealthy(spec: instances.InstanceSpec, reason: str, tail: Sequence[str]) -> errors.NexusError:
    return errors.AgentFailed(
        f"{spec.agent} fails its health check",
        code="health.failing",
        phase="health",
        cause=f"{reason} ({spec.health.retries} times)",
        next_step=f"check hosting.health; {_LOGS.format(agent=spec.agent)}",
        log_tail=tail,
    )


def check_secrets(spec: instances.InstanceSpec, *, lacking: bool) -> None:
    """`Unavailable` while they are unknown: what another supervisor gave to a container cannot be read back from it."""
    if not lacking:
        return
    raise errors.Unavailable(
        f"a session of {spec.agent} cannot be started yet",
        code="session.not_started",
        phase="start",
        cause="its secrets are unknown until control answers",
        next_step="try again in a second; see with: nexus status",
        retry_after_s=1.0,
    )


def awaiting_spec(detail: str) -> str:
    return f"{detail}; waits for its settings from control"


def of_worker(problem: Mapping[str, object], tail: Sequence[str]) -> dict[str, object]:
    """The worker's own problem (it knows best what failed), with a phase and the log added when it has none."""
    full = dict(problem)
    full.setdefault("code", "start.failed")
    full.setdefault("kind", "agent_failed")
    full.setdefault("detail", full.get("title") or "the agent could not be started")
    full.setdefault("phase", "start")
    if not full.get("log_tail"):
        full["log_tail"] = list(tail)
    return full


def _size(count: int) -> str:
    for unit, size in (("Gi", 1024**3), ("Mi", 1024**2), ("Ki", 1024)):
        if count >= size and count % size == 0:
            return f"{count // size}{unit}"
    return str(count)
