"""What an agent may reach through its way out: pure. Hosts are named; addresses behind them are judged by `nexus.kit.egress`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nexus.kit import egress

_ENTRY = re.compile(r"(\*\.)?(\*|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:(\d{1,5}))?")
_NAME = re.compile(r"([a-z0-9-]+\.)*[a-z][a-z0-9-]*")
_USUAL_PORTS = (80, 443)
_PINNED_NET = 87
_MOST_PINNED = 128


@dataclass(frozen=True, slots=True)
class Rule:
    """`host` itself, or with `below` every name under it, or `*` for every host; `port` None: 80 and 443."""

    host: str
    below: bool = False
    port: int | None = None

    def allows(self, host: str, port: int) -> bool:
        if port not in (_USUAL_PORTS if self.port is None else (self.port,)):
            return False
        if self.host == "*":
            return True
        return host.endswith(f".{self.host}") if self.below else host == self.host


def parse_rules(entries: Sequence[str]) -> tuple[Rule, ...]:
    """From `hosting.egress`: `api.example.com`, `*.example.com`, `db.example.com:5432`. ValueError names the bad entry."""
    rules = []
    for entry in entries:
        match = _ENTRY.fullmatch(entry)
        port = int(match[5]) if match and match[5] else None
        if match is None or entry.startswith("*.*") or port == 0 or (port or 0) > 65535 or ".." in entry:
            raise ValueError(f"{entry[:80]!r} is not a host such as api.example.com, *.example.com or db.example.com:5432")
        rules.append(Rule(host=match[2].strip("[]").lower(), below=match[1] is not None, port=port))
    return tuple(rules)


def read_rules(options: Mapping[str, object]) -> tuple[Rule, ...]:
    """Those of an instance's options; none where they name none."""
    entries = options.get("egress")
    return parse_rules([str(entry) for entry in entries]) if isinstance(entries, list | tuple) else ()


def plan_pins(rules: Sequence[Rule]) -> tuple[tuple[str, str, int], ...]:
    """`(host, address, port)` of the loopback ports that lead to the named hosts, for libraries that know no proxy.

    Every exact name gets a loopback address of its own, so that its ports stay what they are. Patterns and literal addresses
    cannot be put into a hosts file: they are reached through the proxy's variables.
    """
    addresses: dict[str, str] = {}
    pins = []
    for rule in rules:
        if rule.below or rule.host == "localhost" or not _NAME.fullmatch(rule.host):
            continue
        if rule.host not in addresses and len(addresses) >= _MOST_PINNED:
            continue
        number = len(addresses) + 1
        address = addresses.setdefault(rule.host, f"127.{_PINNED_NET}.{number // 250}.{number % 250 + 1}")
        pins += [(rule.host, address, port) for port in (_USUAL_PORTS if rule.port is None else (rule.port,))]
    return tuple(dict.fromkeys(pins))


def parse_call(method: str, target: str) -> tuple[egress.Target, bool]:
    """Where a proxy's request line leads, and whether it asks for a tunnel. Raises `egress.Refused`."""
    if method == "CONNECT":
        if not re.fullmatch(r"[^/?#@]+:\d{1,5}", target):
            raise egress.Refused("CONNECT wants host:port")
        return egress.parse_url(f"http://{target}/"), True
    if not target.lower().startswith("http://"):
        raise egress.Refused("a proxy is asked for http://… or by CONNECT")
    return egress.parse_url(target), False


def check(target: egress.Target, rules: Sequence[Rule]) -> None:
    """Nothing, or `egress.Refused` with what to write to allow it."""
    if not any(rule.allows(target.host, target.port) for rule in rules):
        written = target.host if target.port in _USUAL_PORTS else f"{target.host}:{target.port}"
        raise egress.Refused(f"{written} is not in hosting.egress; add it there to allow it")
