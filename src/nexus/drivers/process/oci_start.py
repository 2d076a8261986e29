"""The first program in a container: takes what it is given by standard input, leads the way out, starts the worker and keeps it.

It lies in the worker copy; `python -I -S <copy>/oci_start.py`. A bundle lies on disk, so the worker's variables are not in it:
they come as one line of JSON (`give`), by a pipe or by the socket that the worker itself takes over as `NEXUS_ORDERS`.
"""

import json
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

_PIECE = 32 * 1024
_LINK = 4  # `box_entry.EXTRA`: where the worker finds its link


def give(target: int, inside: "Mapping[str, Any]") -> None:
    """From outside: to a pipe or a seqpacket socket."""
    line = json.dumps(inside).encode() + b"\n"
    for begin in range(0, len(line), _PIECE):
        os.write(target, line[begin : begin + _PIECE])


def main() -> "NoReturn":
    """Never returns."""
    inside = _take()
    os.umask(0o077)
    _settle_input(linked=inside["linked"])
    listeners = []
    if inside["way"]:
        sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
        from nexus.drivers.process import box_relay

        listeners = box_relay.settle(box_relay.listen(inside["pins"]), _LINK + 1)
    os.closerange(_LINK + 1 + len(listeners), 1024)
    watched = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    worker = os.fork()
    if worker == 0:
        _become_worker(inside)
    if listeners and os.fork() == 0:
        os.closerange(3, _LINK + 1)
        box_relay.serve(listeners, inside["way"])
    os.closerange(0, 1024)
    _keep(worker, watched)


def _settle_input(*, linked: bool) -> None:
    """Nothing as standard input; what it was as `_LINK`, where the worker takes it over."""
    link = os.dup(0)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if linked and link != _LINK:
        os.dup2(link, _LINK)
    if link != _LINK or not linked:
        os.close(link)
    if linked:
        os.set_inheritable(_LINK, True)


def _take() -> "dict[str, Any]":
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, _PIECE)
        if not piece:
            os._exit(71)
        line += piece
    taken: dict[str, Any] = json.loads(line)
    return taken


def _become_worker(inside: "dict[str, Any]") -> "NoReturn":
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(inside["command"][0], inside["command"], inside["environ"])  # noqa: S606 - replacing ourselves is the point
    except OSError as error:
        os.write(2, f"{inside['command'][0]}: {error.strerror}\n".encode())
    os._exit(127)


def _keep(worker: int, watched: "set[signal.Signals]") -> "NoReturn":
    """Pid 1: reap every orphan, hand signals on, end as the worker ends (128 + the signal, as a shell tells it)."""
    while True:
        number = signal.sigwait(watched)
        if number != signal.SIGCHLD:
            try:  # noqa: SIM105
                os.kill(worker, number)
            except ProcessLookupError:
                pass
            continue
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                os._exit(71)
            if ended == 0:
                break
            if ended == worker:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
