"""The author's code imported for workers that come later: no session, no token, nobody listening. Used by `zygote`, and by
`session_alone` where a version cannot be forked."""

import contextlib
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType

from nexus.worker import adapters, entry, hooks, logs, relay, session_memory, session_warm, settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """`relay_port`: where clients that were made while importing look for models, and `relay_key` what they show;
    `own_network`: that very port is free in a session's network. `held` keeps the port, where it is not."""

    config: settings.Settings
    capture: logs.Capture
    adapter: adapters.Adapter
    relay_port: int
    relay_key: str = field(repr=False)
    own_network: bool
    held: socket.socket


def load(
    config: settings.Settings, capture: logs.Capture, *, isolated: bool, before: Callable[[], None] = lambda: None
) -> Imported:
    """Import and warm it. `before` is called when everything of ours is there and nothing of the author's.

    Raises `AgentFailed`, as `entry.load`.
    """
    os.chdir(config.source)
    entry.add_to_path(config.source)
    hot: set[CodeType] = set()
    session_memory.watch(lambda: session_warm.rehearse(config, capture), hot)
    held, key = socket.socket(socket.AF_INET, socket.SOCK_STREAM), "nxl_" + secrets.token_urlsafe(24)
    held.bind(("127.0.0.1", 0))  # the port is ours, and nobody listens: not here
    port = int(held.getsockname()[1])
    if config.door is not None:
        relay.export(relay.environment(port, key, os.environ))
        hooks.install()
        if config.traces:
            with contextlib.suppress(ImportError):
                from nexus.worker import traces  # noqa: F401 - imported once, for all sessions
    before()
    adapter = entry.load(config.entrypoint, config.source)
    module = config.entrypoint.partition(":")[0]
    session_memory.watch(lambda: session_warm.warm_agent(module), hot)
    session_memory.gather(hot)
    if hot:
        session_warm.warm_agent(module)
    session_warm.rehearse(config, capture)  # with what the author's imports have changed
    if isolated:
        held.close()
    return Imported(
        config=config, capture=capture, adapter=adapter, relay_port=port, relay_key=key, own_network=isolated, held=held
    )
