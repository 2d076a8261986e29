"""Which URLs and addresses may be called on a stranger's word."""

import ipaddress

import pytest

from nexus.kit import egress

NOTHING = egress.Allowance()

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "198.18.0.1",
    "192.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fd00::1", "ff02::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::",
    "2001:0:0:0:0:0:80ff:fffe", "2001:db8::1", "192.0.2.1", "203.0.113.5", "fec0::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    with pytest.raises(egress.Refused):
        egress.check_address(ipaddress.ip_address(address), NOTHING)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    egress.check_address(ipaddress.ip_address(address), NOTHING)


def test_what_the_operator_named_passes_and_nothing_beside_it() -> None:
    allowance = egress.parse_allowance("127.0.0.1, 10.1.0.0/16,fd00::/8")
    for address in ("127.0.0.1", "10.1.2.3", "fd12::1", "::ffff:10.1.2.3"):
        egress.check_address(ipaddress.ip_address(address), allowance)
    for address in ("127.0.0.2", "10.2.0.1", "fc00::1", "::1"):
        with pytest.raises(egress.Refused):
            egress.check_address(ipaddress.ip_address(address), allowance)


def test_one_private_address_among_public_ones_spoils_a_name() -> None:
    answers = [ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("10.0.0.1")]
    with pytest.raises(egress.Refused):
        egress.check_addresses(answers, NOTHING)


@pytest.mark.parametrize("entry", ["localhost", "10.0.0.0/33", "10.0.0.1-10.0.0.9", "*"])
def test_an_allowance_that_is_no_address_or_range_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match="NEXUS_EGRESS_ALLOW"):
        egress.parse_allowance(f"10.0.0.0/8,{entry}")


@pytest.mark.parametrize(
    "url",
    [
        "", "/callback", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com", "javascript:alert(1)", "http://",
        "http:///x", "http://user@example.com/", "http://user:pw@example.com/", "https://example.com/#f", "http://example.com:0/",
        "http://example.com:99999/", "http://2130706433/", "http://0x7f.1/", "http://0x7f000001/", "http://017700000001/",
        "http://127.1/", "http://127.0.1/", "http://exa mple.com/", "http://example.com/\r\nX: y", "http://example.com/\x00",
        "http://[::1", "http://[zz]/", "http://example.com\\@evil/", "http://a" + "a" * 2100 + ".com/", "http://ex%61mple.com/",
        "http://.../",
    ],
)  # fmt: skip
def test_urls_that_are_not_plain_http_are_refused(url: str) -> None:
    with pytest.raises(egress.Refused):
        egress.parse_url(url)


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "authority"),
    [
        ("http://Example.COM", "example.com", 80, "/", "example.com"),
        ("https://example.com.:8443/a/b?c=d&e", "example.com", 8443, "/a/b?c=d&e", "example.com:8443"),
        ("http://[::1]:9/x", "::1", 9, "/x", "[::1]:9"),
        ("https://bücher.example/", "xn--bcher-kva.example", 443, "/", "xn--bcher-kva.example"),
        ("http://ⓔxample.com/", "example.com", 80, "/", "example.com"),
        ("http://127.0.0.1/ä", "127.0.0.1", 80, "/%C3%A4", "127.0.0.1"),
        ("http://１２７.0.0.1/", "127.0.0.1", 80, "/", "127.0.0.1"),
    ],
)
def test_a_url_is_taken_apart(url: str, host: str, port: int, path: str, authority: str) -> None:
    target = egress.parse_url(url)
    assert (target.host, target.port, target.path, target.authority) == (host, port, path, authority)


async def test_names_are_judged_by_what_they_resolve_to() -> None:
    for url in (
        "http://localhost/",
        "http://localhost./",
        "http://127.0.0.1/",
        "http://[::ffff:127.0.0.1]/",
        "http://１２７.0.0.1/",
    ):
        with pytest.raises(egress.Refused):
            await egress.resolve(egress.parse_url(url), NOTHING)
    allowed = await egress.resolve(egress.parse_url("http://localhost/"), egress.parse_allowance("127.0.0.0/8,::1"))
    assert {str(address) for address in allowed} <= {"127.0.0.1", "::1"}
