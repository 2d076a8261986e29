"""Starts the first process of a box, lets it into its control groups, hands it its plan and hears what became of it.

The plan goes over a socket once the process stands in its groups: nothing of the agent's is in an argument list or an environment
before the box is closed. The kernel itself tells us the pids, as credentials of what is answered.
"""

import contextlib
import json
import os
import socket
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexus.drivers.process import cgroups

_MAIN = Path(__file__).with_name("box_main.py")
_OOM_SCORE = 500
_CREDENTIALS = struct.Struct("3i")
ANSWER_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """What the box answered: its processes by our numbers, or what failed."""

    init: int = 0
    worker: int = 0
    failed: dict[str, Any] | None = None


def enter(
    drawn: dict[str, Any],
    *,
    python: str,
    output: int,
    group: cgroups.Group,
    extra: int | None = None,
    program: str = "box_entry",
    environ: Mapping[str, str] | None = None,
) -> tuple["subprocess.Popen[bytes]", Entered]:
    """Start the first process, let it into its groups, hand it the plan and hear what became of it. Raises OSError.

    `extra`: a descriptor that it inherits, by the number that the plan gets as `extra`. `program`: the module of this package
    whose `main` takes the plan; `environ` beside its own, for everybody on this machine to see.
    """
    if extra is not None:
        drawn = {**drawn, "extra": extra}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.settimeout(ANSWER_S)
        first = subprocess.Popen(
            [python, "-I", "-S", str(_MAIN), program, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={"LANG": "C.UTF-8", **(environ or {})},
            pass_fds=(theirs.fileno(), *((extra,) if extra is not None else ())),
            start_new_session=True,
            umask=0o077,
        )
        theirs.close()
        try:
            group.join(first.pid)
            with contextlib.suppress(OSError):
                Path(f"/proc/{first.pid}/oom_score_adj").write_text(str(_OOM_SCORE))
            with contextlib.suppress(BrokenPipeError):
                ours.sendall(json.dumps(drawn).encode())
                ours.shutdown(socket.SHUT_WR)
            entered = _hear(ours)
        except BaseException:
            first.kill()
            first.wait()
            raise
        if entered.init or entered.failed is not None:
            first.wait(ANSWER_S)
        if entered.init and entered.failed is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(entered.init, 0)
        return first, entered


def _hear(link: socket.socket) -> Entered:
    """Everything the box says until it runs (or has ended): one letter from each process that came to life."""
    init = worker = 0
    failed = b""
    while True:
        data, extra, _, _ = link.recvmsg(64 * 1024, socket.CMSG_SPACE(_CREDENTIALS.size))
        if not data:
            break
        pid = next((_CREDENTIALS.unpack(found[: _CREDENTIALS.size])[0] for _, _, found in extra), 0)
        while data and not failed:  # one process's words may come in one piece
            letter, data = data[:1], data[1:]
            if letter == b"i":
                init = pid
            elif letter == b"w":
                worker = pid
            elif letter == b"!":
                failed = letter
        failed += data
    if failed:
        layer, number, text = (*failed[1:].decode("utf-8", "replace").split("\0", 2), "", "")[:3]
        return Entered(init=init, worker=worker, failed={"layer": layer, "errno": number, "text": text})
    if not worker:
        return Entered(init=init, failed={"layer": "namespaces", "text": "it ended before the agent was started", "errno": 0})
    return Entered(init=init, worker=worker)
