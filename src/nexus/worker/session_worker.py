"""The worker of one session: forked in its box, waits until it is given a session, then serves that session's runs alone."""

import atexit
import dataclasses
import logging
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from nexus.worker import adapters, hooks, logs, main, relay, relay_wake, session_fresh, session_link, settings, work_folder

_LOG = logging.getLogger("nexus.worker")
EXIT_UNBOUND = 72


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inherited:
    """What the zygote has made ready. `relay_port`: where clients that were made while importing look for models;
    `own_network`: that very port is free in the session's network."""

    config: settings.Settings
    capture: logs.Capture
    adapter: Callable[[], adapters.Adapter]
    relay_port: int
    relay_key: str
    own_network: bool


def live(inherited: Inherited, talk: socket.socket, output: int) -> int:
    """Everything from the fork to the end; the exit code. `output` is where its prints go."""
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    session_fresh.refresh()
    session_link.send(talk, {"is": "worker"})
    try:
        bound, descriptors = session_link.receive(talk)
    except session_link.Gone:
        return EXIT_UNBOUND
    return _serve(inherited, bound, descriptors, talk)


def _serve(inherited: Inherited, bound: dict[str, Any], descriptors: list[int], talk: socket.socket) -> int:
    session_id, token = str(bound["session"]), str(bound["token"])
    logs.SESSION = session_id
    if len(descriptors) > 1:
        _restore(descriptors[1], inherited.config)
    config = dataclasses.replace(
        inherited.config, token=token, session_id=session_id, status_file=None, grace_s=float(bound.get("grace_s", 10.0))
    )
    listener = socket.socket(fileno=descriptors[0])
    listener.setblocking(False)
    worker = main.Worker(
        config,
        inherited.capture,
        relay_port=inherited.relay_port if inherited.own_network else 0,
        relay_key=inherited.relay_key,
        on_relay=lambda wanted: _lead(inherited.relay_port, wanted),
        on_ready=lambda: _tell_ready(talk),
    )
    code = worker.live_with(inherited.adapter, lambda: listener)
    inherited.capture.flush_open()
    return code


def leave(code: int) -> NoReturn:
    """Exit without unwinding into the zygote's own code, after what the session's libraries registered for their exit."""
    last_resort = threading.Timer(2.0, os._exit, (code,))
    last_resort.daemon = True
    last_resort.start()
    try:
        atexit._run_exitfuncs()
    finally:
        os._exit(code)


def _lead(known: int, wanted: relay.Relay) -> None:
    """Model clients to this session's relay, also those that were made while importing."""
    relay_wake.on_connect(wanted, moved_from=known)
    if known != wanted.port:
        hooks.move_relay(known, wanted.port)


def _tell_ready(talk: socket.socket) -> None:
    try:
        session_link.send(talk, {"is": "ready"})
    except OSError:  # a supervisor that was killed meanwhile; the next one asks
        _LOG.debug("nobody to tell that the session is ready")
    finally:
        talk.close()


def _restore(archive: int, config: settings.Settings) -> None:
    """The work directory as it was when the session's last worker was stopped."""
    with os.fdopen(archive, "rb") as file:
        work_folder.unpack(file, os.environ["HOME"])
