"""How many requests an address may send to doors that ask for no key: signed links to questions, and triggers.

Whoever comes through a proxy that is trusted is known by what that proxy says (the last entry of `X-Forwarded-For`); everybody
else by the connection. An IPv6 network of 64 bits, which is what one customer gets, counts as one address.
"""

import functools
import ipaddress

from nexus.gateway import limits
from nexus.gateway.call import Call
from nexus.gateway.settings import Settings

SCOPE = "address"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def find_limit(call: Call, settings: Settings) -> limits.Limit | None:
    """The limit this request counts against; None where there is none."""
    match = call.match
    if call.inside or match is None or not match.signed or not settings.public_requests_per_minute:
        return None
    forwarded = call.head.named.get(b"x-forwarded-for", b"").decode("latin-1")
    address = find_address(call.peer, forwarded, settings.proxies)
    return limits.limit(SCOPE, f"address/{address}", settings.public_requests_per_minute)


@functools.lru_cache(maxsize=4096)
def find_address(peer: str, forwarded: str, proxies: tuple[Network, ...]) -> str:
    """Who asks: the peer, or whom a trusted proxy names last. What is no address counts as the peer."""
    known = _parse(peer)
    if known is not None and forwarded and any(known.version == one.version and known in one for one in proxies):
        known = _parse(forwarded.rpartition(",")[2].strip()) or known
    if known is None:
        return peer
    return str(ipaddress.ip_network((known, 64), strict=False)) if known.version == 6 else str(known)


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
