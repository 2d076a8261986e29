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

_TIMES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """`relay_port`: where clients that were made while importing look for models, and `relay_key` what they show;
    `stand_in`: nobody's agent of
    the same framework; `own_network`: that very port is free in a session's network. `held` keeps the port, where it is not."""

    config: settings.Settings
    capture: logs.Capture
    adapter: adapters.Adapter
    stand_in: adapters.Adapter | None
    relay_port: int
    relay_key: str = field(repr=False)
    own_network: bool
    held: socket.socket


def load(
    config: settings.Settings,
    capture: logs.Capture,
    *,
    isolated: bool,
    before: Callable[[], None] = lambda: None,
    shared: bool = True,
) -> Imported:
    """Import and warm it. `before` is called when everything of ours is there and nothing of the author's. `shared`: others will
    be forked from it, so that it pays to do beforehand what each would do.

    Raises `AgentFailed`, as `entry.load`.
    """
    os.chdir(config.source)
    entry.add_to_path(config.source)
    hot: set[CodeType] = set()
    if shared:
        session_memory.watch(lambda: session_warm.rehearse(config, capture, times=1), hot)
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
    stand_in = session_warm.stand_in(adapter)

    def warm(times: int) -> None:
        session_warm.warm_agent(module)
        session_warm.rehearse(config, capture, stand_in, times=times)  # with what the author's imports have changed

    if shared:
        session_memory.watch(lambda: warm(1), hot)
        session_memory.gather(hot)
        warm(_TIMES)
    else:
        session_warm.warm_agent(module)
    if isolated:
        held.close()
    return Imported(
        config=config,
        capture=capture,
        adapter=adapter,
        stand_in=stand_in,
        relay_port=port,
        relay_key=key,
        own_network=isolated,
        held=held,
    )
