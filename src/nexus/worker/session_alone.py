"""A session's worker that was not forked: the whole way from the start of the interpreter, in a whole box of its own.

For versions that cannot be forked, or may not be. A keeper is forked before anything is imported; to the supervisor the two look
like those that a zygote makes, but for the box's own first process.
"""

import faulthandler
import logging
import os
import signal
import socket
import sys
from typing import NoReturn

from nexus.core import errors
from nexus.worker import handed, logs, main, session_import, session_keeper, session_link, session_worker, settings

_LOG = logging.getLogger("nexus.worker")


def run(talk: int, *, isolated: bool, are_handed: bool = False) -> NoReturn:
    """Never returns. `talk` is our end of a socket pair; the first message brings the keeper its socket. `are_handed`: that
    socket and the session's are `handed.Handed`."""
    link = socket.socket(fileno=talk)
    try:
        order, descriptors = session_link.receive(link)
        session_link.send(link, {"is": "init"})
    except (session_link.Gone, OSError):
        sys.exit(main.EXIT_FAILED)
    worker = os.fork()
    if worker:
        link.close()
        session_keeper.Keeper(worker, handed.take(descriptors[0], handed=are_handed)).run()
    os.close(descriptors[0])
    os.setsid()
    _work(link, isolated=isolated, rehearses=order.get("spare") is True, are_handed=are_handed)


def _work(link: socket.socket, *, isolated: bool, rehearses: bool, are_handed: bool) -> NoReturn:
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True, chain=False)
    code = main.EXIT_FAILED
    try:
        config = settings.parse_settings(os.environ)
        capture = logs.install(config.log_level)
        imported = session_import.load(config, capture, isolated=isolated, shared=False)
        code = session_worker.live(imported, link, None, rehearses=rehearses, are_handed=are_handed)
    except errors.NexusError as error:
        session_link.send(link, {"is": "failed", "layer": error.code, "text": error.cause or error.message})
        for line in error.log_tail:
            _LOG.error("%s", line)
    except Exception as error:  # noqa: BLE001 - told, and the end of this process
        _LOG.exception("the session's worker failed")
        session_link.send(link, {"is": "failed", "layer": "worker", "text": repr(error)})
    session_worker.leave(code)
