"""The verbs of the host as seen from outside it: start it, ask how it is, stop it. Called by `nexus up`, `down` and `status`."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nexus
from nexus.apps import keeper_logs, keeper_probe, keeper_record, keeper_sweep, settings
from nexus.core import errors
from nexus.kit.home import Home

KEEPER = (sys.executable, "-P", "-m", "nexus.apps.keeper")
_START_S, _STOP_S = 90.0, 90.0


def is_of_another_version(home: Home) -> bool:
    """Whether a host runs on this home that another version of this program started: `nexus up` then takes it over."""
    record = keeper_record.read(home)
    return record is not None and keeper_record.is_alive(record) and record.version != nexus.__version__


def become_keeper(environ: Mapping[str, str], *, replace: bool = False) -> None:
    """Turn this process into the keeper in the foreground; does not return. `replace`: of a host that runs already."""
    sys.stdout.flush()
    sys.stderr.flush()
    command = (*KEEPER, *(("--replace",) if replace else ()))
    os.execve(command[0], command, dict(environ))  # noqa: S606 - a shell would only be in the way


def start_detached(environ: Mapping[str, str], *, log: Path, replace: bool = False) -> dict[str, Any]:
    """Start a keeper in the background and wait until the host answers or has failed. `replace`: it takes over a host that
    runs already, and brings it to this version and environment without failing a request.

    Answers the keeper's outcome: `{"ok": true, "lines", "origin", "pid", "port"}` or `{"ok": false, "problem"}`.
    """
    reading, writing = os.pipe()
    try:
        subprocess.run(
            [*KEEPER, "--detached", "--ready-fd", str(writing), *(("--replace",) if replace else ())],
            env=dict(environ),
            pass_fds=(writing,),
            stdin=subprocess.DEVNULL,
            timeout=30,
            check=False,
            capture_output=False,
            stdout=subprocess.DEVNULL,
        )
        os.close(writing)
        writing = -1
        answer = _read_line(reading, _START_S)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    if answer is None:
        raise errors.Unavailable(
            "the keeper ended without a word",
            code="host.start_failed",
            log_tail=keeper_logs.tail(log, 12),
            next_step=f"read {log}, and run nexus doctor",
        )
    outcome: dict[str, Any] = json.loads(answer)
    return outcome


def stop(home: Home, *, force: bool, environ: Mapping[str, str], say: Callable[[str], None]) -> bool:
    """Stop everything of this home, with or without a living keeper. False when nothing ran. Raises Unavailable when it will not.

    `force` gives every process a second at most; runs in hand are lost, acknowledged tasks are not.
    """
    record = keeper_record.read(home)
    alive = [entry for entry in record.processes if keeper_record.is_alive(entry)] if record else []
    keeper_lives = record is not None and keeper_record.is_alive(record)
    if record is None or not (alive or keeper_lives):
        swept = keeper_sweep.kill_agents(home)
        keeper_record.remove(home)
        return swept > 0
    if keeper_lives:
        _stop_keeper(record, force=force, say=say)
    if any(keeper_record.is_alive(entry) for entry in record.processes):
        say("no keeper: stopping the processes that it left")
        _run_stop_only(environ, force=force)
    left = [entry.name for entry in record.processes if keeper_record.is_alive(entry)]
    if left and force:
        for entry in record.processes:
            handle = keeper_record.open_process(entry.pid, entry.ticks)
            if handle is not None:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                os.close(handle)
        keeper_sweep.kill_agents(home)
        keeper_record.remove(home)
    elif left:
        raise errors.Unavailable(
            f"these processes did not stop: {', '.join(left)}",
            code="host.stop_failed",
            next_step="nexus down --force",
        )
    return True


def status(home: Home, *, api_key: str | None) -> dict[str, Any]:
    """What runs, what it costs and whether it answers, as JSON-ready data. `running` false when nothing does."""
    record = keeper_record.read(home)
    now = time.time()
    if record is None:
        return {"running": False, "home": str(home.root)}
    processes = [
        {
            "name": entry.name,
            "pid": entry.pid,
            "alive": keeper_record.is_alive(entry),
            "memory_bytes": sum(_memory(pid) for pid in _own_processes(entry)),
            "uptime_s": round(max(0.0, now - entry.started_at), 1),
            "restarts": entry.restarts,
        }
        for entry in record.processes
    ]
    keeper_lives = keeper_record.is_alive(record)
    keeper = {
        "name": "keeper",
        "pid": record.pid,
        "alive": keeper_lives,
        "memory_bytes": _memory(record.pid) if keeper_lives else 0,
        "uptime_s": round(max(0.0, now - record.started_at), 1),
        "restarts": 0,
    }
    if not keeper_lives and not any(entry["alive"] for entry in processes):
        return {"running": False, "home": str(home.root), "cause": "its processes have ended without nexus down"}
    address = (settings.reachable(record.host), record.port)
    certificate = keeper_record.certificate_of(record)
    health = keeper_probe.ask(address, "/health", timeout_s=2.0, certificate=certificate)
    result: dict[str, Any] = {
        "running": True,
        "ready": record.ready and not record.stopping,
        "origin": record.origin,
        "version": record.version,
        "home": str(home.root),
        "database": record.database,
        "gateway": "answers" if health and health[0] == 200 else "does not answer",
        "processes": [keeper, *processes],
    }
    agents = keeper_sweep.find_agents(home)
    result["agents"] = {"processes": len(agents), "memory_bytes": sum(_memory(pid) for pid in agents)}
    result["memory_bytes"] = sum(_memory_of(entry) for entry in [*result["processes"], result["agents"]])
    if api_key:
        credential = f"Authorization: Bearer {api_key}\r\n"
        answer = keeper_probe.ask(address, "/v1/agents", timeout_s=3.0, headers=credential, certificate=certificate)
        result |= _deployments(answer)
    return result


def read_admin_key(home: Home) -> str | None:
    with contextlib.suppress(OSError):
        return home.admin_key.read_text().strip() or None
    return None


def _deployments(answer: tuple[int, Any] | None) -> dict[str, Any]:
    if answer is None or answer[0] != 200 or not isinstance(answer[1], dict | list):
        reason = "control does not answer" if answer is None else f"control answered {answer[0]}"
        return {"deployments": None, "deployments_cause": reason}
    agents = answer[1] if isinstance(answer[1], list) else answer[1].get("items", [])
    fields = ("agent", "environment", "version", "phase", "ready", "replicas", "url")
    return {
        "deployments": [
            {name: entry.get(name) for name in fields} for agent in agents for entry in agent.get("deployments") or ()
        ]
    }


def _stop_keeper(record: keeper_record.HostRecord, *, force: bool, say: Callable[[str], None]) -> None:
    handle = keeper_record.open_process(record.pid, record.ticks)
    if handle is None:
        return
    try:
        say(f"stopping the host at {record.origin}")
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        if not force:
            _wait(handle, _STOP_S)
            return
        for _ in range(8):  # each further signal cuts one group's patience short
            if _wait(handle, 1.0):
                return
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGTERM)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        _wait(handle, 5.0)
    finally:
        os.close(handle)


def _run_stop_only(environ: Mapping[str, str], *, force: bool) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [*KEEPER, "--stop-only"],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=3.0 if force else _STOP_S,
            check=False,
        )


def _wait(handle: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _read_line(handle: int, timeout_s: float) -> bytes | None:
    """One line from a pipe; None when it was closed without one or the time is over."""
    deadline, parts = time.monotonic() + timeout_s, b""
    poll = select.poll()
    poll.register(handle, select.POLLIN | select.POLLHUP)
    while b"\n" not in parts:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
        chunk = os.read(handle, 65536)
        if not chunk:
            return None
        parts += chunk
    return parts.partition(b"\n")[0]


def _own_processes(entry: keeper_record.ProcessRecord) -> list[int]:
    """PostgreSQL is many processes; the supervisor's descendants are agents and builds, which are not its own."""
    return _family(entry.pid) if entry.name == "postgres" else [entry.pid]


def _memory_of(entry: Mapping[str, Any]) -> int:
    return int(entry["memory_bytes"])


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                text = Path(f"/proc/{name}/stat").read_text(errors="replace")
                parents.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(name))
    family, look = [], [pid]
    while look:
        member = look.pop()
        family.append(member)
        look.extend(parents.get(member, ()))
    return family


def _memory(pid: int) -> int:
    """Proportional set size in bytes (shared pages divided among those who share them); resident size where that is closed."""
    for path, field in ((f"/proc/{pid}/smaps_rollup", "Pss:"), (f"/proc/{pid}/status", "VmRSS:")):
        with contextlib.suppress(OSError, IndexError, ValueError):
            for line in Path(path).read_text(errors="replace").splitlines():
                if line.startswith(field):
                    return int(line.split()[1]) * 1024
    return 0
