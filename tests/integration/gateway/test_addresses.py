"""Doors that ask for no key are limited by address, each in a budget of its own; what asks for a key is not."""

import ipaddress
import json

import pytest

from nexus.gateway import addresses, settings

PROXIES = (*settings.LOOPBACK, ipaddress.ip_network("10.0.0.0/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.7", "", "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),
        ("127.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1"),
        ("10.1.2.3", "198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "nonsense", "127.0.0.1"),
        ("::ffff:127.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("2001:db8::1", "", "2001:db8::/64"),
        ("2001:db8::2:0:0:1%eth0", "", "2001:db8:0:0::/64"),
        ("::1", "2001:db8:1:2:3::", "2001:db8:1:2::/64"),
        ("unix", "198.51.100.1", "unix"),
    ],
)
def test_whose_a_request_is(peer, forwarded, expected):
    wanted = str(ipaddress.ip_network(expected)) if "/" in expected else expected
    assert addresses.find_address(peer, forwarded, PROXIES) == wanted


def test_signed_links_are_limited_by_address_and_nothing_else_is(bare_node, small):
    node = bare_node

    async def answer(server, request, reader, writer):
        writer.write(small.plain(json.dumps({"from": request.header("x-forwarded-for")}).encode()))
        return True

    node.control.api.does["echo"] = answer
    node.start(NEXUS_PUBLIC_REQUESTS_PER_MINUTE="2")

    def knock(path, address):
        return node.ask("POST", path, {}, key=None, headers={"X-Forwarded-For": address})

    assert [knock(path, "198.51.100.1").status for path in ("/hooks/abc", "/asks/def", "/hooks/abc")] == [200, 200, 429]
    refused = knock("/asks/def", "9.9.9.9, 198.51.100.1")
    assert (refused.json["code"], int(refused.header("Retry-After")) > 0) == ("limit.requests", True)
    assert knock("/hooks/abc", "198.51.100.2").status == 200
    assert [node.ask("GET", "/v1/agents").status for _ in range(4)] == [200] * 4
    assert [knock("/docs", "198.51.100.1").status for _ in range(4)] == [200] * 4
