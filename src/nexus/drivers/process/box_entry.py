"""Entering the box, step by step; the order is the security. Standard library only, and little of it: this is start-up time.

```
supervisor ── Popen ──► box_main ── unshare, CLONE_PARENT ──► init (pid 1) ── fork ──► worker (pid 2)
     ▲        plan by socket        then it exits         builds the root,            exec
     └────── "init", "worker", or what failed ◄────────── gives up everything
```

`confine` is what a zygote calls too, in a child that it forked: it needs no exec.
"""

import _json  # the scanner itself, without the package's regular expressions
import _signal as signal  # type: ignore[import-not-found]  # without the enums
import _socket
import os
import resource

from nexus.drivers.process import box_calls, box_filter, box_landlock, box_relay, box_root

EXIT_BOX = 71
_LINK = 3
EXTRA = 4  # where the agent's program finds the one descriptor that it may be given
_FORWARDED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGABRT, signal.SIGWINCH,
)  # fmt: skip


def main(control: int) -> None:
    """Never returns. `control` is our end of a stream socket: the plan comes in by it, the outcome goes out."""
    os.set_inheritable(control, False)
    link = _socket.socket(fileno=control)
    plan = read_plan(link)
    try:
        _limit(plan["limits"])
        if "namespaces" in plan["layers"]:
            _into_namespaces(plan)
            link.sendall(b"i")
        _live(plan, link)
    except box_calls.Denied as denied:
        fail(link, denied.layer, str(denied), denied.number)
    except OSError as error:
        fail(link, "namespaces", f"{error.filename or 'set-up'}: {error.strerror}", error.errno or 0)


def confine(plan: "box_calls.Plan") -> "list[box_relay.Listener]":
    """From inside fresh namespaces to an unprivileged process in its own root. Raises `Denied`.

    Called with all privileges the caller has; afterwards there are none, for this process and whatever it starts. What it gives
    back are the ports of the way out, for `box_relay.serve` in a process of its own; none where the plan has no `way`.
    """
    layers = plan["layers"]
    ways: list[box_relay.Listener] = []
    os.umask(0o022)
    if "namespaces" in layers:
        if plan["isolated"]:
            box_calls.raise_loopback()
        if plan["way"]:
            ways = box_relay.listen(plan["pins"])
        _socket.sethostname(plan["host"])
        box_root.build(plan)
    _renounce(plan)
    os.umask(0o077)
    os.chdir(plan["folder"])
    box_calls.forbid_new_privileges()
    if "landlock" in layers:
        box_landlock.restrict(plan["landlock_read"], plan["landlock_write"], files=plan["landlock_files"])
    if "seccomp" in layers:
        restricted = plan["restricted"] and not plan["zygote"]
        box_calls.set_filter(box_filter.build(box_calls.machine, restricted=restricted, furnishes=plan["zygote"]))
    return ways


def _into_namespaces(plan: "box_calls.Plan") -> None:
    """This process ends; its twin, already in the new namespaces and pid 1 there, goes on as the supervisor's child."""
    own = box_calls.CLONE_NEWNS | box_calls.CLONE_NEWIPC | box_calls.CLONE_NEWUTS | box_calls.CLONE_NEWPID
    own |= box_calls.CLONE_NEWCGROUP
    if plan["owner"] is None:
        user, group = os.getuid(), os.getgid()
        box_calls.unshare(own | box_calls.CLONE_NEWUSER, "namespaces")
        _map_ids(plan["inner"], user, group)
    else:
        box_calls.unshare(own, "namespaces")
    if plan["isolated"]:
        box_calls.unshare(box_calls.CLONE_NEWNET, "network")
    if box_calls.fork_beside():
        os._exit(0)
    os.setsid()


def _map_ids(inner: int, user: int, group: int) -> None:
    for name, line in (("setgroups", "deny"), ("uid_map", f"{inner} {user} 1"), ("gid_map", f"{inner} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)


def _renounce(plan: "box_calls.Plan") -> None:
    """Another user, unprivileged inside and outside, and not one capability left."""
    owner = plan["owner"]
    if owner is not None:
        box_calls.drop_bounding_set()
        os.setgroups([])
        os.setresgid(owner, owner, owner)
        os.setresuid(owner, owner, owner)
        box_calls.be_inspectable()
        if "user" in plan["layers"]:
            # The namespaces above belong to the host's own user namespace, where we are nobody from here on.
            box_calls.unshare(box_calls.CLONE_NEWUSER, "user")
            try:
                _map_ids(plan["inner"], owner, owner)
            except OSError as error:
                raise box_calls.Denied("user", "map the user", error.errno or 0) from None
    if "namespaces" in plan["layers"] and (owner is None or "user" in plan["layers"]):
        box_calls.drop_bounding_set()  # a new user namespace begins with all of them
    elif owner is None:
        try:  # noqa: SIM105
            box_calls.drop_bounding_set()
        except box_calls.Denied:  # an ordinary user may not, and has none to lose
            pass
    box_calls.drop_capabilities()


def _live(plan: "box_calls.Plan", link: _socket.socket) -> None:
    if "namespaces" not in plan["layers"]:
        confine_alone(plan, link)
        return
    ways = confine(plan)
    if plan.get("processes"):  # counted within our user namespace from here on, so after entering it
        resource.setrlimit(resource.RLIMIT_NPROC, (plan["processes"],) * 2)
    link, ways = _take_descriptors(plan, link, ways)
    watched = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    worker = os.fork()
    if worker == 0:
        os.setsid()
        _start(plan, link)
    helper = os.fork() if ways else -1
    if helper == 0:
        link.close()
        box_relay.serve(ways, plan["way"])
    link.close()
    _keep(worker, watched, helper=helper, lingers=plan["zygote"])


def confine_alone(plan: "box_calls.Plan", link: _socket.socket) -> None:
    """Without namespaces: no privileges can be gained, the filter and Landlock where there are such, and no init of our own."""
    confine({**plan, "owner": None})
    if plan["extra"] >= 0:
        if link.fileno() == EXTRA:
            link = _socket.socket(fileno=os.dup(link.detach()))
        os.dup2(plan["extra"], EXTRA)
    _start(plan, link)


def _start(plan: "box_calls.Plan", link: _socket.socket) -> None:
    try:
        link.sendall(b"w")
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execve(plan["command"][0], plan["command"], plan["environ"])  # noqa: S606 - replacing ourselves is the point
    except OSError as error:
        fail(link, "command", f"{plan['command'][0]}: {error.strerror}", error.errno or 0)


def _keep(worker: int, watched: "set[int]", *, helper: int, lingers: bool) -> None:
    """Pid 1: reap every orphan, hand signals on, end as the worker ends (128 + the signal, as a shell tells it).

    `lingers`: the sessions that a zygote forked outlive it, and this process outlives them.
    """
    box_calls.close_from(0)
    forwarded = set(_FORWARDED)
    outcome = EXIT_BOX
    while True:
        number = signal.sigwait(watched)
        if number in forwarded:
            try:  # noqa: SIM105 - contextlib costs the start a millisecond
                os.kill(worker, number)
            except ProcessLookupError:
                pass
        if number != signal.SIGCHLD:
            continue
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                os._exit(outcome)
            if ended == 0:
                break
            if ended == worker:
                code = os.waitstatus_to_exitcode(status)
                outcome = code if code >= 0 else 128 - code
                if not lingers:
                    os._exit(outcome)
                if helper > 0:
                    os.kill(helper, signal.SIGKILL)


def _take_descriptors(
    plan: "box_calls.Plan", link: _socket.socket, ways: "list[box_relay.Listener]"
) -> "tuple[_socket.socket, list[box_relay.Listener]]":
    """Input from the box's own `/dev/null`, output to the FIFO by its name in the box; only the link and the ways stay open."""
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    out = os.open(plan["output"], os.O_RDWR)
    os.dup2(out, 1)
    os.dup2(out, 2)
    ours = link.detach()
    if plan["extra"] >= 0:
        extra = os.dup(plan["extra"])
        if ours == EXTRA:
            ours = os.dup(ours)
        os.dup2(extra, EXTRA)
    if ours != _LINK:
        os.dup2(ours, _LINK, inheritable=False)
    first = EXTRA if plan["extra"] < 0 else EXTRA + 1
    ways = box_relay.settle(ways, first)
    box_calls.close_from(first + len(ways))
    return _socket.socket(fileno=_LINK), ways


def _limit(limits: "dict[str, list[int]]") -> None:
    for name, (soft, hard) in limits.items():
        kind = getattr(resource, name)
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))


class _Strict:
    """How plain JSON is read."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


def read_plan(link: _socket.socket) -> "box_calls.Plan":
    """The JSON that comes by it until its end; ends this process where there is none."""
    pieces = []
    while piece := link.recv(1 << 20):
        pieces.append(piece)
    if not pieces:
        os._exit(EXIT_BOX)
    plan: box_calls.Plan = _json.make_scanner(_Strict)(b"".join(pieces).decode(), 0)[0]  # type: ignore[arg-type]
    return plan


def fail(link: _socket.socket, layer: str, text: str, number: int) -> None:
    """Say what failed, and end this process."""
    try:  # noqa: SIM105
        link.sendall(b"\0".join((b"!" + layer.encode(), str(number).encode(), text.encode())))
    except OSError:
        pass
    os._exit(EXIT_BOX)
