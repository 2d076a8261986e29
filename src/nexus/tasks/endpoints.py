"""Which webhook endpoints may be called now: none holds up another, whatever it does. Pure.

A call that has not ended after a moment counts as slow: it no longer takes one of the quick places, which are what healthy
endpoints live on. An endpoint that was slow or failed is ailing until it answers well: one call at a time, slow from the
start. One that nothing is known of gets one call as well, until that has gone well.
"""

from collections import Counter
from dataclasses import dataclass, field

from nexus.tasks.settings import WebhookSettings

_MOST_REMEMBERED = 5_000


@dataclass(slots=True)
class Endpoints:
    """`quick` and `slow` count the calls under way."""

    settings: WebhookSettings
    quick: int = 0
    slow: int = 0
    _calls: "Counter[str]" = field(default_factory=Counter)
    _ailing: dict[str, None] = field(default_factory=dict)
    _well: dict[str, None] = field(default_factory=dict)
    _quiet_until: dict[str, float] = field(default_factory=dict)

    def free(self) -> int:
        """How many calls may begin."""
        return max(0, self.settings.concurrency - self.quick)

    def rooms(self, *, now: float) -> dict[str, int]:
        """How many more calls an endpoint may get; those that are not named: one."""
        self._quiet_until = {host: until for host, until in self._quiet_until.items() if until > now}
        found = {host: self.settings.per_host - self._calls[host] for host in self._well}
        found |= {host: 0 for host in self._calls if host not in self._well}
        if self.slow >= self.settings.slow:
            found |= dict.fromkeys(self._ailing, 0)
        return found | dict.fromkeys(self._quiet_until, 0)

    def begin(self, host: str) -> bool:
        """Whether the call is a quick one, so far."""
        self._calls[host] += 1
        quick = host not in self._ailing
        self.quick += quick
        self.slow += not quick
        return quick

    def grow_slow(self, host: str) -> bool:
        """A quick call takes long: whether it gives its quick place up, which it does while there is room for slow ones."""
        self._ail(host)
        if self.slow >= self.settings.slow:
            return False
        self.quick -= 1
        self.slow += 1
        return True

    def end(self, host: str, *, quick: bool, well: bool) -> None:
        """`quick` tells which place the call had last."""
        self.quick -= quick
        self.slow -= not quick
        self._calls[host] -= 1
        if not self._calls[host]:
            del self._calls[host]
        if well:
            self._ailing.pop(host, None)
            _remember(self._well, host)
        else:
            self._ail(host)

    def quiet(self, host: str, *, until: float) -> None:
        """The endpoint asked for a pause (429 or 503 with `Retry-After`)."""
        self._quiet_until[host] = max(until, self._quiet_until.get(host, 0.0))

    def _ail(self, host: str) -> None:
        self._well.pop(host, None)
        _remember(self._ailing, host)


def _remember(hosts: dict[str, None], host: str) -> None:
    hosts[host] = None
    if len(hosts) > _MOST_REMEMBERED:
        del hosts[next(iter(hosts))]
