"""The first process of a session's box: reaps, hands signals on, runs commands in the box, and ends as the worker ends.

It is forked from the zygote and does almost nothing, so almost nothing of its memory is its own. Its supervisor reaches it by a
listening socket that only the supervisor can connect to, so a new supervisor finds it as the old one did. One request for each
connection: `{"do": "hold"}` keeps a descriptor (the session's listening socket), `{"do": "tell"}` gives it back, `{"do": "exec"}`
starts a program with the descriptors it brings, `{"do": "pack"}` writes the work directory to one.
"""

import _signal as signal  # type: ignore[import-not-found]  # without the enums
import os
import select
import socket
from typing import Any

from nexus.worker import session_link

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGABRT)
_EXIT_LOST, _EXIT_EXEC = 71, 127
_ANSWER_S = 5.0


class Keeper:
    """`run` never returns."""

    def __init__(self, worker: int, commands: socket.socket) -> None:
        self._worker, self._commands = worker, commands
        self._held = -1
        self._running: dict[int, socket.socket] = {}
        self._wake, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (*_FORWARDED, signal.SIGCHLD):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())

    def run(self) -> None:
        ready = select.poll()
        ready.register(self._wake, select.POLLIN)
        ready.register(self._commands.fileno(), select.POLLIN)
        self._reap()
        while True:
            for number, _ in ready.poll():
                if number == self._wake:
                    self._on_wake()
                else:
                    self._accept()

    def _on_signal(self, number: int, _: object) -> None:
        """Handled where the loop is woken."""

    def _on_wake(self) -> None:
        numbers = set(os.read(self._wake, 256))
        for number in numbers & set(_FORWARDED):
            try:
                os.kill(self._worker, number)
                os.kill(self._worker, signal.SIGCONT)  # `pack` may have stopped it
            except ProcessLookupError:
                continue
        if signal.SIGCHLD in numbers:
            self._reap()

    def _reap(self) -> None:
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                os._exit(_EXIT_LOST)
            if ended == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if ended == self._worker:
                os._exit(code if code >= 0 else 128 - code)
            if (asked := self._running.pop(ended, None)) is not None:
                _answer(asked, {"exit": code})
                asked.close()

    def _accept(self) -> None:
        try:
            asked, _ = self._commands.accept()
        except OSError:
            return
        asked.settimeout(_ANSWER_S)
        descriptors: list[int] = []
        try:
            message, descriptors = session_link.receive(asked)
            if not self._obey(message, descriptors, asked):
                asked.close()
        except (session_link.Gone, OSError, ValueError, KeyError, TypeError) as error:
            _answer(asked, {"failed": f"{type(error).__name__}: {error}"})
            asked.close()
        finally:
            for number in descriptors:
                os.close(number)

    def _obey(self, message: dict[str, Any], descriptors: list[int], asked: socket.socket) -> bool:
        """Whether the connection is to stay open, for the end of what was started."""
        doing = message["do"]
        if doing == "hold":
            if self._held >= 0:
                os.close(self._held)
            self._held = os.dup(descriptors[0])
            _answer(asked, {})
            return False
        if doing == "tell":
            session_link.send(asked, {}, () if self._held < 0 else (self._held,))
            return False
        if doing == "exec":
            child = self._start(list(message["command"]), descriptors)
        elif doing == "pack":
            child = self._pack(int(message["most"]), descriptors[0])
        else:
            raise ValueError(f"no such command: {doing}")
        self._running[child] = asked
        return True

    def _start(self, command: list[str], descriptors: list[int]) -> int:
        child = os.fork()
        if child:
            return child
        try:
            _be_plain()
            os.setsid()
            for number, given in enumerate(descriptors[:3]):
                os.dup2(given, number)
            os.closerange(3, 4096)
            os.chdir(os.environ.get("HOME", "/"))
            os.execvpe(command[0], command, _environment())  # noqa: S606 - a program of the session's own, in its box
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(_EXIT_EXEC)

    def _pack(self, most: int, output: int) -> int:
        """Done at the end: the worker stands still from here to its next signal, for what it did would be lost."""
        os.kill(self._worker, signal.SIGSTOP)
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            _be_plain()
            from nexus.worker import work_folder

            try:
                with os.fdopen(os.dup(output), "wb") as file:
                    work_folder.pack(os.environ["HOME"], file, most=most)
                code = 0
            except work_folder.TooLarge:
                code = 2
        finally:
            os._exit(code)


def _be_plain() -> None:
    """Signals as any program finds them."""
    signal.set_wakeup_fd(-1)
    for number in (*_FORWARDED, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("NEXUS_")}


def _answer(asked: socket.socket, message: dict[str, Any]) -> None:
    try:
        session_link.send(asked, message)
    except OSError:
        return
