"""The worker of one session: forked in its box, waits until it is given a session, then serves that session's runs alone."""

import atexit
import dataclasses
import logging
import os
import socket
import tarfile
import threading
from typing import Any, NoReturn

from nexus.worker import (
    hooks,
    logs,
    main,
    relay,
    relay_wake,
    session_fresh,
    session_import,
    session_link,
    settings,
    work_folder,
)

_LOG = logging.getLogger("nexus.worker")
EXIT_UNBOUND = 72


def live(imported: session_import.Imported, talk: socket.socket, output: int | None) -> int:
    """Everything from the fork to the end; the exit code. `output` is where its prints go, None: where they go already."""
    if output is not None:
        for number in (1, 2):
            os.dup2(output, number)
        os.close(output)
    session_fresh.refresh()
    session_link.send(talk, {"is": "worker"})
    try:
        bound, descriptors = session_link.receive(talk)
    except session_link.Gone:
        return EXIT_UNBOUND
    return _serve(imported, bound, descriptors, talk)


def _serve(imported: session_import.Imported, bound: dict[str, Any], descriptors: list[int], talk: socket.socket) -> int:
    session_id, token = str(bound["session"]), str(bound["token"])
    logs.SESSION = session_id
    if len(descriptors) > 1:
        _restore(descriptors[1], imported.config)
    config = dataclasses.replace(
        imported.config, token=token, session_id=session_id, status_file=None, grace_s=float(bound.get("grace_s", 10.0))
    )
    listener = socket.socket(fileno=descriptors[0])
    listener.setblocking(False)
    worker = main.Worker(
        config,
        imported.capture,
        relay_port=imported.relay_port if imported.own_network else 0,
        relay_key=imported.relay_key,
        on_relay=lambda wanted: _lead(imported.relay_port, wanted),
        on_ready=lambda: _tell_ready(talk),
    )
    code = worker.live_with(lambda: imported.adapter, lambda: listener)
    imported.capture.flush_open()
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
        try:
            work_folder.unpack(file, os.environ["HOME"])
        except (tarfile.TarError, OSError, EOFError) as error:
            _LOG.error("the session's kept work directory cannot be read to its end: %s", error)
