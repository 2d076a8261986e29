"""Where the host may connect to on a stranger's word: public addresses, and those the operator named in `NEXUS_EGRESS_ALLOW`.

`parse_*` and `check_*` are pure; `resolve` asks the resolver, judges every answer and gives the addresses to pin.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MAX_URL_CHARACTERS = 2048
_PORTS = {"http": 80, "https": 443}
# Not covered by `is_global` in every Python version: NAT64, 6to4 and Teredo embed an IPv4 address, which is judged instead.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15", "240.0.0.0/4", "64:ff9b:1::/48", "fec0::/10")
)


class Refused(ValueError):
    """The target may not be reached; the text says why, for the person who asked."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the operator opened: addresses and ranges."""

    networks: tuple[Network, ...] = ()

    def __contains__(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self.networks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A URL taken apart. `host` is a lower-case ASCII name or an address; `path` begins with `/` and holds the query."""

    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[Address, ...] = field(default=())

    @property
    def authority(self) -> str:
        """What `Host` says: the port only when it is not the scheme's own."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == _PORTS[self.scheme] else f"{name}:{self.port}"


def parse_allowance(value: str | None) -> Allowance:
    """From `NEXUS_EGRESS_ALLOW`: addresses and ranges with commas between. Raises ValueError naming the bad entry."""
    networks = []
    for entry in (value or "").replace(" ", "").split(","):
        if not entry:
            continue
        try:
            networks.append(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            raise ValueError(f"NEXUS_EGRESS_ALLOW: {entry!r} is not an address or a range such as 10.0.0.0/8") from None
    return Allowance(tuple(networks))


def parse_url(url: str) -> Target:
    """The parts of an absolute http(s) URL without credentials and fragment. Raises `Refused`."""
    if len(url) > MAX_URL_CHARACTERS:
        raise Refused(f"it is longer than {MAX_URL_CHARACTERS} characters")
    if any(character <= " " or character in '\\"<>^`{|}' or character == "\x7f" for character in url):
        raise Refused("it holds a space, a control character or a character no URL may hold")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Refused(f"it is not a URL: {error}") from None
    if parts.scheme not in _PORTS:
        raise Refused("only http:// and https:// URLs are called")
    if "@" in parts.netloc:
        raise Refused("it holds credentials; the signature shows who calls")
    if parts.fragment:
        raise Refused("it holds a fragment ('#…'), which is never sent")
    if port == 0:
        raise Refused("port 0 cannot be connected to")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(
        scheme=parts.scheme,
        host=_host(parts.hostname or ""),
        port=port or _PORTS[parts.scheme],
        path=path.encode("ascii", "backslashreplace").decode() if path.isascii() else _percent(path),
    )


def check_address(address: Address, allowance: Allowance) -> None:
    """Nothing, or `Refused` for an address that is not public and not allowed. Embedded IPv4 addresses are judged as such."""
    embedded = _embedded(address)
    if address in allowance or (embedded is not None and embedded in allowance):
        return
    judged = embedded if embedded is not None else address
    if any(judged.version == network.version and judged in network for network in _REFUSED) or not _is_public(judged):
        raise Refused(
            f"{judged} is a private, loopback, link-local or reserved address; name it in NEXUS_EGRESS_ALLOW to allow it"
        )


async def resolve(target: Target, allowance: Allowance, *, timeout_s: float = 5.0) -> tuple[Address, ...]:
    """Every address of the host, all of them permitted. Raises `Refused`, or OSError when the name does not resolve."""
    if (literal := _literal(target.host)) is not None:
        check_address(literal, allowance)
        return (literal,)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_s):
        answers = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    addresses = tuple(dict.fromkeys(ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers))
    check_addresses(addresses, allowance)
    return addresses


def check_addresses(addresses: Sequence[Address], allowance: Allowance) -> None:
    """One bad answer spoils all: a name that resolves to a public and a private address is an attack or a mistake."""
    if not addresses:
        raise Refused("its name has no address")
    for address in addresses:
        check_address(address, allowance)


def _host(name: str) -> str:
    name = name.rstrip(".")
    if not name:
        raise Refused("it names no host")
    if (address := _literal(name)) is not None:
        return str(address)
    try:
        encoded = name.encode("idna").decode("ascii").lower() if not name.isascii() else name.lower()
    except UnicodeError:
        raise Refused("its host name is not a valid one") from None
    if (address := _literal(encoded)) is not None:
        return str(address)
    if _looks_numeric(encoded):
        raise Refused("its host is a number in disguise; write addresses as 203.0.113.7")
    if len(encoded) > 253 or not all(character.isalnum() or character in "-._" for character in encoded):
        raise Refused("its host name is not a valid one")
    if encoded == "localhost" or encoded.endswith((".localhost", ".local", ".internal")):
        return encoded  # judged by what it resolves to, as every name is
    return encoded


def _looks_numeric(host: str) -> bool:
    """`2130706433`, `0x7f.1`, `017700000001`, `127.1`: forms that inet_aton takes and people do not write."""
    last = host.rpartition(".")[2]
    return last.isdigit() or (last.startswith("0x") and all(letter in "0123456789abcdef" for letter in last[2:]))


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or (int(address) >> 32 == 0 and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _is_public(address: Address) -> bool:
    return address.is_global and not (
        address.is_multicast or address.is_loopback or address.is_link_local or address.is_unspecified or address.is_reserved
    )


def _percent(path: str) -> str:
    from urllib.parse import quote

    return quote(path, safe="/%?&=;:@!$'()*+,~-._[]")
