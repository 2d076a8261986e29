"""Sessions that use the processor all the time give way to those that use it now and then. Called by `session_table`.

The kernel shares a busy processor evenly between control groups, and who runs ends its turn before somebody who wakes has his: a
short answer waits for milliseconds behind a session that never sleeps. Whose weight is low loses the processor as soon as
somebody wakes, and still has all of it that nobody else wants.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

from nexus.drivers.process import appetite, cgroups, rounds, session_host

_LOOK_S = 0.05
_LATELY_S = 15.0


class Weights:
    """`run` looks at all sessions of a node until it is cancelled; only at their sum while that is little."""

    def __init__(self, hosts: Callable[[], Iterable[session_host.Host]]) -> None:
        self._hosts = hosts
        self._sum: cgroups.Counter | None = None
        self._low = False
        self._before = (0.0, 0.0)

    async def run(self) -> None:
        try:
            while True:
                await asyncio.sleep(_LOOK_S)
                if any(host.sessions for host in self._hosts()):
                    await self.look(asyncio.get_running_loop().time())
        finally:
            if self._sum is not None:
                self._sum.close()

    async def look(self, now: float) -> None:
        hosts = list(self._hosts())
        if not self._low and not self._much_in_all(hosts, now):
            return
        self._low = False
        lately = time.time() - _LATELY_S
        found = [(appetite.much_of(host.spec.cpu_millis), one) for host in hosts for one in host.sessions.values()]
        async for much, one in rounds.in_slices(found):
            process = one.process
            if process is None or process.frozen or (one.active_at < lately and not process.gives_way):
                continue  # who was silent for so long and then uses much is said to be active by `session_care`
            process.look_at_processor(now, much)
            self._low = self._low or process.gives_way

    def _much_in_all(self, hosts: list[session_host.Host], now: float) -> bool:
        """Whether all instances together, sessions or not, used so much that one of them may be the reason."""
        if self._sum is None:
            self._sum = hosts[0].whole.cpu_counter()
        used_s, (before_s, at) = self._sum.count() / 1e9, self._before
        self._before = (used_s, now)
        return used_s - before_s >= min(appetite.much_of(host.spec.cpu_millis) for host in hosts) * (now - at)
