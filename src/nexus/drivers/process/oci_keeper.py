"""Beside a container that has sessions to serve: what the container's kernel cannot do with sockets of this machine.

gVisor takes descriptors that come over a unix socket, but accepts no connection on a listening one. So this process listens, and
hands each connection in; `nexus.worker.handed` is the other end. It is pid 1 of a process namespace that holds the runtime too,
so the kernel ends all of it with this process. Trusted, small, standard library only. Started by `oci_launcher`.

```
supervisor ── talk ──► keeper ── standard input ──► session_alone          messages, and the connections
           ── .ctl ──►   │   └── signals ─► runsc ─► sandbox, gofer
gateway  ── session ──►  │
```

A zygote that forks nothing has orders in place of talk: a listening socket, whose connections are handed in as they are.
"""

import json
import os
import select
import signal
import socket
from typing import Any, NoReturn

from nexus.drivers.process import box_calls, box_entry, oci_start

_LONGEST = 256 * 1024
_MOST_DESCRIPTORS = 8
_ANSWER_S = 5.0
_EXIT_LOST = 71
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGABRT)


def main(control: int) -> NoReturn:
    """Never returns. `control` is the end of a stream socket that the plan comes in by, and how the start went goes out."""
    link = socket.socket(fileno=control)
    os.set_inheritable(control, False)
    plan = box_entry.read_plan(link)
    os.umask(0o022)
    try:
        box_calls.unshare(box_calls.CLONE_NEWPID | box_calls.CLONE_NEWNS, "namespaces")
        if box_calls.fork_beside():
            os._exit(0)
        os.setsid()
        box_calls.make_private()
        box_calls.mount("proc", "/proc", "proc", box_calls.MS_NOSUID | box_calls.MS_NODEV | box_calls.MS_NOEXEC)
        link.sendall(b"i")
        keeper = Keeper(plan)
        link.sendall(b"w")
    except box_calls.Denied as denied:
        box_entry.fail(link, denied.layer, str(denied), denied.number)
    except OSError as error:
        box_entry.fail(link, "command", f"{error.filename or 'set-up'}: {error.strerror}", error.errno or 0)
    link.close()
    keeper.run()
    os._exit(_EXIT_LOST)


class Hand:
    """The connections of one listening socket, handed in by `link`; while there is no room, the next one waits."""

    def __init__(self, listener: socket.socket, link: socket.socket) -> None:
        listener.setblocking(False)
        link.setblocking(False)
        self.listener, self.link = listener, link
        self._waiting: socket.socket | None = None

    def wants(self) -> tuple[int, int]:
        """What to wait for: a descriptor and an event of poll(2)."""
        if self._waiting is not None:
            return self.link.fileno(), select.POLLOUT
        return self.listener.fileno(), select.POLLIN

    def go_on(self) -> None:
        """Accept one, unless one waits, and hand it in. Raises OSError when nobody takes it any more."""
        if self._waiting is None:
            try:
                self._waiting, _ = self.listener.accept()
            except (BlockingIOError, ConnectionError, InterruptedError):
                return
        self.give(self._waiting)

    def give(self, connection: socket.socket) -> None:
        self._waiting = connection
        try:
            socket.send_fds(self.link, [b"+"], [connection.fileno()])
        except BlockingIOError:
            return
        connection.close()
        self._waiting = None


class Keeper:
    """Starts the runtime when it is made; `run` never returns."""

    def __init__(self, plan: "box_calls.Plan") -> None:
        self._hands: list[Hand] = []
        self._held: socket.socket | None = None
        self._talk: socket.socket | None = None
        self._commands: Hand | None = None
        self._wake, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (*_FORWARDED, signal.SIGCHLD):
            signal.signal(number, _ignore)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        given = socket.socket(fileno=plan["extra"])
        os.set_inheritable(given.fileno(), False)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._runtime = os.posix_spawn(
                plan["command"][0],
                plan["command"],
                plan["environ"],
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)],
                setsigdef=(*_FORWARDED, signal.SIGCHLD, signal.SIGPIPE),
            )
        oci_start.give(ours.fileno(), plan["inside"])
        self._inner: socket.socket | None = ours
        if given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._hands.append(Hand(given, ours))
            self._inner = None
        else:
            self._talk = given
            self._begin_session()

    def _begin_session(self) -> None:
        """The supervisor's first message brings the socket that commands come by."""
        assert self._talk is not None
        assert self._inner is not None
        order, descriptors = _receive(self._talk)
        handing, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._inner, [json.dumps(order).encode()], [theirs.fileno()])
        self._commands = Hand(socket.socket(fileno=descriptors[0]), handing)

    def run(self) -> None:
        self._reap()
        while True:
            ready = select.poll()
            ready.register(self._wake, select.POLLIN)
            for link in (self._talk, self._inner):
                if link is not None:
                    ready.register(link.fileno(), select.POLLIN)
            waiting: dict[int, Hand] = {}
            for hand in (*self._hands, *([self._commands] if self._commands is not None else [])):
                number, event = hand.wants()
                waiting[number] = hand
                ready.register(number, event)
            for number, _ in ready.poll():
                if number == self._wake:
                    self._on_wake()
                elif (waited := waiting.get(number)) is not None:
                    self._accept(waited)
                elif self._talk is not None and number == self._talk.fileno():
                    self._hear_supervisor()
                elif self._inner is not None and number == self._inner.fileno():
                    self._hear_inside()

    # the supervisor, and the session inside

    def _hear_supervisor(self) -> None:
        """One message: whom the worker is for, with the session's listening socket and the kept work directory."""
        assert self._talk is not None
        try:
            message, descriptors = _receive(self._talk)
        except (EOFError, OSError, ValueError):
            self._talk.close()
            self._talk = None
            if not self._hands and self._inner is not None:  # never to be bound: inside it hears the same
                self._inner.close()
                self._inner = None
            return
        listener = socket.socket(fileno=descriptors[0])
        self._held = listener.dup()
        handing, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            if self._inner is not None:
                socket.send_fds(self._inner, [json.dumps(message).encode()], [theirs.fileno(), *descriptors[1:]])
        for number in descriptors[1:]:
            os.close(number)
        self._hands.append(Hand(listener, handing))

    def _hear_inside(self) -> None:
        """What it says is for the supervisor, which judges it."""
        assert self._inner is not None
        try:
            said = self._inner.recv(_LONGEST)
        except OSError:
            said = b""
        if not said:
            self._inner.close()
            self._inner = None
        elif self._talk is not None:
            try:  # noqa: SIM105 - contextlib is more memory
                self._talk.send(said, socket.MSG_DONTWAIT)
            except OSError:  # one that was killed meanwhile, or a flood: nobody waits for that
                pass

    def _accept(self, hand: Hand) -> None:
        try:
            if hand is self._commands and hand.wants()[1] == select.POLLIN:
                self._accept_command(hand)
            else:
                hand.go_on()
        except OSError:  # nobody takes connections any more: its end is near
            if hand in self._hands:
                self._hands.remove(hand)
            else:
                self._commands = None
            hand.listener.close()
            hand.link.close()

    def _accept_command(self, hand: Hand) -> None:
        """What concerns the listening socket is answered here; the rest is done inside."""
        try:
            asked, _ = hand.listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        asked.settimeout(_ANSWER_S)
        try:
            is_ours = json.loads(asked.recv(_LONGEST, socket.MSG_PEEK))["do"] in ("hold", "tell")
            if is_ours:
                self._answer(asked)
        except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError):  # whoever asked has left, or asks for nothing
            is_ours = True
        if is_ours:
            asked.close()
            return
        asked.setblocking(True)
        hand.give(asked)

    def _answer(self, asked: socket.socket) -> None:
        """Keep the session's listening socket, or give it back."""
        order, descriptors = _receive(asked)
        if order["do"] == "hold":
            self._held = socket.socket(fileno=descriptors[0])
            socket.send_fds(asked, [b"{}"], [])
        else:
            socket.send_fds(asked, [b"{}"], [] if self._held is None else [self._held.fileno()])

    # the runtime

    def _on_wake(self) -> None:
        numbers = set(os.read(self._wake, 256))
        for number in numbers & set(_FORWARDED):
            try:  # noqa: SIM105
                os.kill(self._runtime, number)
            except ProcessLookupError:
                pass
        if signal.SIGCHLD in numbers:
            self._reap()

    def _reap(self) -> None:
        """The runtime ends as what it runs ends, 128 and the signal for one that was killed; a killed runtime likewise."""
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                os._exit(_EXIT_LOST)
            if ended == 0:
                return
            if ended == self._runtime:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)


def _receive(link: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and its descriptors. Raises EOFError at the end."""
    data, descriptors, _, _ = socket.recv_fds(link, _LONGEST, _MOST_DESCRIPTORS)
    if not data:
        raise EOFError
    for number in descriptors:
        os.set_inheritable(number, False)
    return json.loads(data), descriptors


def _ignore(*_: object) -> None:
    """The loop is woken by its descriptor."""
