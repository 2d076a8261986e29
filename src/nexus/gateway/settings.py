"""What a gateway process is told at its start, and the limits it keeps. `apps.gateway` fills it from the environment."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from nexus.kit import home

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times are seconds, sizes bytes. `hosts` and `origins` are added to those of the feed. `public_requests_per_minute` holds
    for each address at the doors that ask for no key (0: any number); `proxies` are believed when they say whose a request is.

    With `tls_certificate` (a PEM chain) and `tls_key` the TCP listener speaks TLS and nothing else.
    """

    home: home.Home
    host: str = "127.0.0.1"
    port: int = 8700
    number: int = 0
    gateways: int = 1
    hosts: frozenset[str] = field(default_factory=frozenset)
    origins: frozenset[str] = field(default_factory=frozenset)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    public_requests_per_minute: int = 600
    proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = LOOPBACK

    header_timeout_s: float = 10.0
    body_idle_s: float = 30.0
    collect_timeout_s: float = 300.0
    keep_alive_s: float = 75.0
    write_stall_s: float = 60.0
    linger_s: float = 5.0
    drain_s: float = 30.0
    replaced_drain_s: float = 3600.0
    handover_patience_s: float = 10.0
    dial_timeout_s: float = 5.0
    control_timeout_s: float = 120.0
    control_patience_s: float = 3.0
    model_timeout_s: float = 600.0
    idle_upstream_s: float = 4.0
    deadline_grace_s: float = 1.0

    max_head_bytes: int = 64 * 1024
    max_headers: int = 100
    max_connections: int = 16_000
    max_pipelined: int = 512
    buffer_bytes: int = 64 * 1024
    idle_upstreams: int = 128
