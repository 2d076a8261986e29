"""The worker of one session: forked in its box, waits until it is given a session, then serves that session's runs alone."""

import asyncio
import atexit
import dataclasses
import logging
import os
import socket
import tarfile
import threading
from typing import NoReturn

import uvicorn

from nexus.worker import (
    execution,
    handed,
    hooks,
    logs,
    main,
    relay,
    relay_wake,
    session_fresh,
    session_import,
    session_link,
    session_warm,
    work_folder,
)

_LOG = logging.getLogger("nexus.worker")
EXIT_UNBOUND = 72
_UNBOUND = "unbound"  # the token of a worker that has no session: it opens nothing


def live(
    imported: session_import.Imported, talk: socket.socket, output: int | None, *, rehearses: bool, are_handed: bool = False
) -> int:
    """Everything from the fork to the end; the exit code. `output` is where its prints go, None: where they go already.
    `rehearses`: nobody waits for it yet. `are_handed`: connections come handed in."""
    if output is not None:
        for number in (1, 2):
            os.dup2(output, number)
        os.close(output)
    session_fresh.refresh()
    session_link.send(talk, {"is": "worker"})
    worker = main.Worker(
        dataclasses.replace(imported.config, token=_UNBOUND, status_file=None),
        imported.capture,
        relay_port=imported.relay_port if imported.own_network else 0,
        relay_key=imported.relay_key,
        on_relay=lambda wanted: _lead(imported.relay_port, wanted),
        on_ready=lambda: _tell_ready(talk),
        late=lambda server, executor: _await_session(
            imported, talk, server, executor, rehearses=rehearses, are_handed=are_handed
        ),
    )
    try:
        code = worker.live_with(lambda: imported.adapter, _no_listener)
    except session_link.Gone:
        return EXIT_UNBOUND
    imported.capture.flush_open()
    return code


async def _await_session(
    imported: session_import.Imported,
    talk: socket.socket,
    server: uvicorn.Server,
    executor: execution.Executor,
    *,
    rehearses: bool,
    are_handed: bool,
) -> main.Bound:
    """Until somebody says for whom. Raises `Gone` when it will not be said any more."""
    if rehearses:
        await session_warm.rehearse_here(server, executor, imported.config, imported.stand_in)
    await _readable(talk)
    bound, descriptors = session_link.receive(talk)
    session_id, token = str(bound["session"]), str(bound["token"])
    logs.SESSION = session_id
    if len(descriptors) > 1:
        _restore(descriptors[1])
    listener = handed.take(descriptors[0], handed=are_handed)
    listener.setblocking(False)
    grace_s = float(bound.get("grace_s", 10.0))
    config = dataclasses.replace(imported.config, token=token, session_id=session_id, status_file=None, grace_s=grace_s)
    return main.Bound(config, listener)


async def _readable(talk: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[None] = loop.create_future()

    def resolve() -> None:
        if not arrived.done():
            arrived.set_result(None)

    loop.add_reader(talk.fileno(), resolve)
    try:
        await arrived
    finally:
        loop.remove_reader(talk.fileno())


def _no_listener() -> socket.socket:
    raise AssertionError("a session's listener comes with the session")


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


def _restore(archive: int) -> None:
    """The work directory as it was when the session's last worker was stopped."""
    with os.fdopen(archive, "rb") as file:
        try:
            work_folder.unpack(file, os.environ["HOME"])
        except (tarfile.TarError, OSError, EOFError) as error:
            _LOG.error("the session's kept work directory cannot be read to its end: %s", error)
