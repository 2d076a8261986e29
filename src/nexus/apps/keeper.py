"""The keeper: starts the host's processes, restarts at once whichever dies, and stops all of them in order.

`python -m nexus.apps.keeper` is what `nexus up` becomes. One thread, one poll over process handles: small enough to stay out of
the way, and without state of its own that would be missed, since a new keeper adopts the running processes from `host.json`.
"""

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import nexus
from nexus.apps import (
    keeper_children,
    keeper_ground,
    keeper_logs,
    keeper_probe,
    keeper_record,
    keeper_roll,
    keeper_sweep,
    keeper_takeover,
    settings,
)
from nexus.core import errors
from nexus.kit.home import Home
from nexus.stores import embedded
from nexus.wire import problem

_READY_WITHIN_S = 60.0
_PATIENCE = 4  # exits of one process before the first readiness that end the start
_TICK_S = 1.0
_LOOK_S = 0.15
_BEFORE = "-before"  # a process that another serves in the place of, and that finishes what it has
_STOPPING = "stopping: gateways and dispatchers, control, supervisor and its agents, database"
Plan = Callable[[settings.HostSettings, Mapping[str, str], str], list[keeper_children.Child]]


class Keeper:
    """One host. `say` gets lines for people; `follow` shows the processes' own lines as well."""

    def __init__(self, host: settings.HostSettings, *, say: Callable[[str], None], follow: bool) -> None:
        self._host, self._say, self._follow = host, say, follow
        self._processes: list[keeper_children.Process] = []
        self._aside: list[keeper_children.Process] = []
        self._stops = self._rolls = 0
        self._leaves = False
        self._started_at = time.time()
        self._ready = False
        self._stopping = False
        self._poll = select.poll()
        self._wake, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll.register(self._wake, select.POLLIN)
        self._followers: dict[str, keeper_logs.Follower] = {}
        self._next_tick = 0.0

    @property
    def record(self) -> keeper_record.HostRecord:
        return keeper_record.HostRecord(
            origin=self._host.origin,
            pid=os.getpid(),
            ticks=keeper_record.ticks_of(os.getpid()) or 0,
            started_at=self._started_at,
            host=self._host.host,
            port=self._host.port,
            gateways=self._host.gateways,
            dispatchers=self._host.dispatchers,
            database="external" if self._host.database_url else "embedded",
            boot=keeper_record.boot_id(),
            version=nexus.__version__,
            tls_certificate=None if self._host.tls_certificate is None else str(self._host.tls_certificate),
            processes=tuple(entry.record() for entry in self._processes if entry.pidfd is not None)
            + tuple(replace(entry.record(), name=f"{entry.child.name}{_BEFORE}") for entry in self._aside),
            ready=self._ready,
            stopping=self._stopping,
        )

    def listen(self) -> None:
        """Take over the signals. TERM and INT: the first asks for a graceful stop, the next one for a quick one. HUP: replace the
        gateways (from a terminal that closes: stop). USR1: leave everything to another keeper."""
        signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def begin(self, children: Sequence[keeper_children.Child], earlier: keeper_record.HostRecord | None) -> int:
        """Adopt what runs already and start the rest; answers how many were adopted."""
        known = {entry.name: entry for entry in earlier.processes} if earlier else {}
        if earlier:
            self._started_at = earlier.started_at
        adopted = 0
        for child in children:
            process = keeper_children.Process(child=child)
            self._processes.append(process)
            follower = self._followers[child.name] = keeper_logs.Follower(child.log)
            follower.skip()
            if child.name in known and process.adopt(known[child.name]):
                adopted += 1
                self._poll.register(process.pidfd or -1, select.POLLIN)
            else:
                self._start(process)
            before = known.get(f"{child.name}{_BEFORE}")
            left = keeper_children.Process(child=child)
            if before is not None and left.adopt(before):
                self._watch_aside(left)
        for name in known.keys() - {child.name for child in children}:
            if name.startswith("dispatcher-"):
                self._retire(known[name])
        self._write()
        return adopted

    def _retire(self, entry: keeper_record.ProcessRecord) -> None:
        """Let a dispatcher end that this host has no longer, once what it has in hand has ended."""
        process = keeper_children.Process(child=keeper_children.plan_retired(self._host.home, entry.name.removesuffix(_BEFORE)))
        if process.adopt(entry):
            self._watch_aside(process)
            process.send(keeper_roll.RELIEVED)

    def wait_ready(self) -> None:
        """Return when every process answers. Raises Unavailable (`host.start_failed`) when one keeps dying or stays silent."""
        deadline = time.monotonic() + _READY_WITHIN_S
        waiting = dict(self._doors())
        certificate = self._host.tls_certificate
        while waiting and not self._stops:
            self._step(0.02)
            for process in self._processes:
                if process.failures >= _PATIENCE:
                    raise self._start_failed(process)
            waiting = {name: address for name, address in waiting.items() if not _answers(address, certificate)}
            if waiting and time.monotonic() > deadline:
                raise self._start_failed(self._named(next(iter(waiting))))
        self._ready = not self._stops
        self._write()

    def keep(self) -> bool:
        """Until a signal asks to stop; False when it asks to leave what runs to another keeper."""
        while not self._stops and not self._leaves:
            self._step(_LOOK_S if self._follow else _TICK_S)
            if self._rolls:
                self._rolls = 0
                self.roll()
        return not self._leaves or self._stops > 0

    def renew(self) -> None:
        """Bring what was adopted to this version and environment: control starts again, dispatchers and gateways are replaced.
        Supervisor, agents and PostgreSQL go on as they are. Raises Unavailable when control does not come back."""
        control = next(entry for entry in self._processes if entry.child.name == "control")
        if control.adopted:
            self._say("starting control again")
            before = control.pid
            control.send(control.child.stop_signal)
            deadline = time.monotonic() + control.child.grace_s
            while control.pid == before and not self._stops:
                if time.monotonic() > deadline:
                    control.kill()
                self._step(0.05)
            self.wait_ready()
        self.roll(adopted=True)

    def roll(self, *, adopted: bool = False) -> None:
        """Replace every dispatcher and gateway (`adopted`: those of an earlier keeper), one after another, without failing a
        request or ending a run."""
        keeping = keeper_roll.Keeping(step=self._step, watch=self._watch_aside, say=self._say, stopping=lambda: self._stops > 0)
        for at, process in enumerate(self._processes):
            door = keeper_roll.find_door(self._host.home, process.child)
            if process.pidfd is None or door is None or self._stops or (adopted and not process.adopted):
                continue
            successor = keeper_roll.replace(process, door, keeping)
            if successor is not None:
                if successor in self._aside:
                    self._aside.remove(successor)
                self._processes[at], successor.restarts = successor, process.restarts
                finishes = process.pidfd is not None
                self._aside += [process] if finishes else []
                self._say(
                    f"{process.child.name} was replaced: {successor.pid} serves"
                    + (f", {process.pid} finishes what it has" if finishes else "")
                )
                self._write()

    def _watch_aside(self, process: keeper_children.Process) -> None:
        self._aside.append(process)
        self._poll.register(process.pidfd or -1, select.POLLIN)
        self._write()

    def stop(self) -> None:
        """Gateways finish what they serve, then control, supervisor (which stops the agents) and PostgreSQL. Leaves nothing."""
        self._stopping = True
        self._stops = max(self._stops, 1)
        self._write()
        everything = [*self._processes, *self._aside]
        for rank in sorted({entry.child.rank for entry in everything}):
            group = [entry for entry in everything if entry.child.rank == rank and entry.pidfd is not None]
            self._stop_group(group)
            if rank == 2 and (killed := keeper_sweep.kill_agents(self._host.home)):
                self._say(f"ended {killed} agent process(es) that the supervisor had left")
        keeper_record.remove(self._host.home)
        if self._host.home.run.parent != self._host.home.root:  # sockets under /tmp, for a home with a long path
            shutil.rmtree(self._host.home.run, ignore_errors=True)

    def _stop_group(self, group: list[keeper_children.Process]) -> None:
        """Ask, wait, and in the end kill; a further signal from the user cuts the waiting short."""
        for process in group:
            process.send(process.child.stop_signal)
        asked, forced = time.monotonic(), self._stops
        while left := [entry for entry in group if entry.pidfd is not None]:
            now = time.monotonic()
            if self._stops > forced:
                forced, asked = self._stops, min(asked, now - 1e6)
                for process in left:  # a second SIGTERM tells our own processes to hurry; PostgreSQL knows SIGQUIT
                    process.send(signal.SIGQUIT if process.child.stop_signal == signal.SIGINT else process.child.stop_signal)
                self._wait(0.5, left)
            for process in left:
                if process.pidfd is not None and now - asked > process.child.grace_s:
                    self._say(f"{process.child.name} did not end in {process.child.grace_s:.0f} s; killing it")
                    process.send(signal.SIGKILL)
            self._wait(0.2, left)

    def _wait(self, timeout_s: float, processes: list[keeper_children.Process]) -> None:
        deadline = time.monotonic() + timeout_s
        before = sum(entry.pidfd is not None for entry in processes)
        while time.monotonic() < deadline and sum(entry.pidfd is not None for entry in processes) == before:
            self._step(0.02)

    def _step(self, timeout_s: float) -> None:
        """One look: wait for an exit, a signal or the time; then restart what is due, show logs, bound files."""
        now = time.monotonic()
        dues = [entry.due - now for entry in self._processes if entry.pidfd is None and not (entry.relieved or self._stopping)]
        ready = {handle for handle, _ in self._poll.poll(max(0.0, min([timeout_s, *dues])) * 1000)}
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 512)
        changed = False
        for process in [one for one in self._aside if one.pidfd is not None and one.pidfd in ready]:
            self._poll.unregister(process.pidfd or -1)
            process.ended()
            self._aside.remove(process)
            changed = True
        for process in self._processes:
            if process.pidfd is not None and process.pidfd in ready:
                self._poll.unregister(process.pidfd)
                process.ended()
                changed = True
                if process.relieved:
                    process.restarts -= 1
                elif not self._stopping:
                    self._say(f"{process.child.name} {process.last_exit}; starting it again")
            if process.pidfd is None and process.is_wanted(time.monotonic()) and not (self._stopping or self._stops):
                self._start(process)
                changed = True
        if changed:
            self._write()
        if self._follow:
            self._show()
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + 2 * _TICK_S
            keeper_logs.bound([*(entry.child.log for entry in self._processes), _own_log(self._host.home)])
            _reap_strangers({entry.pid for entry in (*self._processes, *self._aside)})
            if not self._stopping and not self._host.home.root.is_dir():
                self._say(f"the home {self._host.home.root} is gone: stopping")
                self._stops += 1

    def _start(self, process: keeper_children.Process) -> None:
        try:
            process.start()
        except OSError as error:
            process.failures += 1
            process.due = time.monotonic() + max(0.2, keeper_children.pause_s(process.failures))
            self._say(f"{process.child.name} could not be started: {error}")
            return
        self._poll.register(process.pidfd or -1, select.POLLIN)

    def _doors(self) -> Iterator[tuple[str, keeper_probe.Address]]:
        """Where each process answers. The gateways share their port, so each is asked at its own socket as well."""
        home = self._host.home
        yield "control", home.control_socket
        yield "supervisor", home.supervisor_socket
        for number in range(self._host.gateways):
            yield f"gateway-{number}", home.door_socket(number)
        for number in range(self._host.dispatchers):
            yield f"dispatcher-{number}", home.dispatcher_socket(number)
        yield "port", (settings.reachable(self._host.host), self._host.port)

    def _named(self, door: str) -> keeper_children.Process:
        name = "gateway-0" if door == "port" else door
        return next(entry for entry in self._processes if entry.child.name == name)

    def _start_failed(self, process: keeper_children.Process) -> errors.Unavailable:
        child = process.child
        reason = f"it {process.last_exit}, {process.failures} times" if process.failures >= _PATIENCE else "it does not answer"
        return errors.Unavailable(
            f"the host could not be started: {child.name} failed",
            code="host.start_failed",
            phase=child.name,
            cause=reason,
            log_tail=keeper_logs.tail(child.log, 12),
            next_step=f"read {child.log}, and run nexus doctor",
        )

    def _show(self) -> None:
        for name, follower in self._followers.items():
            for line in follower.lines():
                self._say(f"{name:<11}| {line}")

    def _write(self) -> None:
        try:
            keeper_record.write(self._host.home, self.record)
        except OSError as error:
            self._say(f"host.json could not be written: {error}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self._leaves = True
        elif number == signal.SIGHUP and not os.isatty(0):
            self._rolls += 1
        else:
            self._stops += 1


def run(
    host: settings.HostSettings,
    environ: dict[str, str],
    *,
    say: Callable[[str], None],
    options: argparse.Namespace,
    announce: Callable[[Keeper, int], None],
    plan: Plan = keeper_children.plan_children,
) -> None:
    """Hold the lock, start or adopt, announce, keep, stop. Raises NexusError when it cannot start."""
    home = host.home
    keeper_ground.make_directories(home)
    with keeper_takeover.hold_lock(host, replaces=options.replace, adopts=options.adopt is not None):
        earlier = keeper_record.read(home)
        alive = [entry for entry in earlier.processes if keeper_record.is_alive(entry)] if earlier else []
        if options.adopt and (earlier is None or earlier.pid != options.adopt):
            return
        if earlier and alive:
            host = keeper_takeover.plan_host(host, earlier, environ, replaces=options.replace)
        elif options.stop_only or options.adopt is not None:
            keeper_record.remove(home)
            return
        else:
            earlier = None
            home.service_token.unlink(missing_ok=True)
        if not any(entry.name.startswith("gateway") for entry in alive):
            host = replace(host, port=keeper_ground.check_port(host.host, host.port))
        keeper = Keeper(host, say=say, follow=not options.detached and not options.stop_only)
        keeper.listen()
        url = host.database_url or embedded.locate(home).uri
        children = plan(host, environ, url)
        if options.stop_only:
            children = [child for child in children if child.name in {entry.name for entry in alive}]
        adopted = keeper.begin(children, earlier)
        stops = True
        try:
            if not options.stop_only:
                if options.replace and adopted:
                    renew(keeper, say)
                else:
                    keeper.wait_ready()
                announce(keeper, adopted)
                stops = keeper.keep()
                say(_STOPPING if stops else "another keeper takes over; what runs goes on")
        finally:
            if stops:
                keeper.stop()


def renew(keeper: Keeper, say: Callable[[str], None]) -> None:
    """Bring a running host to this version; whatever fails on the way is said, and what ran before goes on."""
    try:
        keeper.renew()
    except errors.NexusError as error:
        for line in settings.explain(error):
            say(line)


def render_banner(record: keeper_record.HostRecord, home: Home, capabilities: object, adopted: int) -> list[str]:
    """What a person wants to know once the host answers."""
    node = capabilities if isinstance(capabilities, dict) else {}
    again = f", {adopted} processes adopted" if adopted else ""
    database = "PostgreSQL of the host, on a private socket" if record.database == "embedded" else "yours (NEXUS_DATABASE_URL)"
    return [
        f"Nexus {record.version} is up{again}",
        f"  url        {record.origin}   (API: {record.origin}/docs)",
        f"  admin key  {home.admin_key}   (the nexus command on this machine uses it)",
        f"  database   {database}",
        f"  isolation  {node.get('isolation', 'unknown')}",
        *(f"             without: {entry}" for entry in node.get("missing", ())),
        f"  home       {home.root}",
        "  next       nexus ai agent init hello && nexus ai agent deploy hello --env development",
        "             nexus status, nexus doctor, nexus down",
    ]


def _answers(address: keeper_probe.Address, certificate: Path | None) -> bool:
    answer = keeper_probe.ask(address, "/health", certificate=certificate)
    return answer is not None and answer[0] == 200


def _own_log(home: Home) -> Path:
    return home.logs / "host.log"


def _reap_strangers(own: set[int]) -> None:
    """As process 1 of a container orphans come to us; collect them, but leave our children to their owners."""
    if os.getpid() != 1:
        return
    with contextlib.suppress(ChildProcessError):
        while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if dead.si_pid in own:
                return
            os.waitpid(dead.si_pid, os.WNOHANG)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nexus.apps.keeper", description=__doc__)
    parser.add_argument("--detached", action="store_true", help="go to the background, no terminal output")
    parser.add_argument(
        "--adopt", type=int, nargs="?", const=0, metavar="PID", help="only what runs still, and was kept by PID last"
    )
    parser.add_argument("--replace", action="store_true", help="take a running host over and bring it to this version")
    parser.add_argument("--stop-only", action="store_true", help="adopt what runs and stop it")
    parser.add_argument("--ready-fd", type=int, help="write the outcome of the start here as one JSON line")
    return parser.parse_args(arguments)


def _detach(home: Home) -> None:
    """Leave the caller's session and terminal; its own lines go to logs/host.log."""
    if os.fork():
        os._exit(0)
    os.setsid()
    log = os.open(_own_log(home), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.close(nothing)


def main(arguments: Sequence[str] | None = None, *, plan: Plan = keeper_children.plan_children) -> int:
    """Exit codes are those of the command line: 6 when a host runs already or the port is taken, 9 when it cannot start."""
    options = _parse(arguments)
    outcome: dict[str, object] = {}

    def say(line: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime()) if options.detached else ""
        with contextlib.suppress(OSError, ValueError):  # a closed terminal must not end the host
            sys.stdout.write(f"{stamp}{line}\n")
            sys.stdout.flush()

    def announce(keeper: Keeper, adopted: int) -> None:
        record = keeper.record
        node = keeper_probe.ask(host.home.supervisor_socket, "/capabilities")
        lines = render_banner(record, host.home, node[1] if node and node[0] == 200 else None, adopted)
        for line in lines:
            say(line)
        tell({"ok": True, "lines": lines, "origin": record.origin, "pid": record.pid, "port": record.port})

    def tell(value: dict[str, object]) -> None:
        outcome.update(value)
        if options.ready_fd is not None:
            with contextlib.suppress(OSError):
                os.write(options.ready_fd, json.dumps(value).encode() + b"\n")
                os.close(options.ready_fd)
            options.ready_fd = None

    try:
        host = settings.read_settings(os.environ)
        if options.detached:
            keeper_ground.make_directories(host.home)
            _detach(host.home)
        run(host, dict(os.environ), say=say, options=options, announce=announce, plan=plan)
    except errors.NexusError as error:
        if options.adopt is not None and error.code == "host.running":
            return 0  # somebody keeps it: all is well
        for line in settings.explain(error):
            say(line)
        tell({"ok": False, "problem": problem.render(error)})
        return settings.EXIT_CODES[error.kind]
    return 0


if __name__ == "__main__":
    sys.exit(main())
