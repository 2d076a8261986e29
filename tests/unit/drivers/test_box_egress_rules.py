"""What a list of hosts lets through, and the spellings that try to get past it."""

import pytest

from nexus.drivers.process import egress_rules
from nexus.kit import egress

RULES = egress_rules.parse_rules(["api.example.com", "*.allowed.org", "db.example.com:5432", "192.0.2.7", "[2001:db8::1]:8080"])


def passes(method: str, target: str) -> bool:
    try:
        egress_rules.check(egress_rules.parse_call(method, target)[0], RULES)
    except egress.Refused:
        return False
    return True


@pytest.mark.parametrize(
    "call",
    [
        ("CONNECT", "api.example.com:443"),
        ("CONNECT", "API.Example.COM:443"),
        ("CONNECT", "api.example.com.:443"),
        ("GET", "http://api.example.com/a?b=c"),
        ("CONNECT", "deep.down.allowed.org:443"),
        ("CONNECT", "db.example.com:5432"),
        ("CONNECT", "192.0.2.7:443"),
        ("CONNECT", "[2001:db8::1]:8080"),
    ],
)
def test_what_is_named_passes(call: tuple[str, str]) -> None:
    assert passes(*call)


@pytest.mark.parametrize(
    "call",
    [
        ("CONNECT", "evilapi.example.com:443"),
        ("CONNECT", "api.example.com.evil.org:443"),
        ("CONNECT", "api.example.com\0.evil.org:443"),
        ("CONNECT", "evil.org\0api.example.com:443"),
        ("CONNECT", "allowed.org:443"),
        ("CONNECT", "evilallowed.org:443"),
        ("CONNECT", "api.example.com:22"),
        ("CONNECT", "db.example.com:443"),
        ("CONNECT", "api.example.com"),
        ("CONNECT", "api.example.com:0"),
        ("CONNECT", "api.example.com:99999"),
        ("CONNECT", "user@api.example.com:443"),
        ("CONNECT", "api.example.com:443/path"),
        ("CONNECT", ""),
        ("CONNECT", "3221225991:443"),
        ("CONNECT", "0xc0000207:443"),
        ("GET", "https://api.example.com/"),
        ("GET", "/path"),
        ("GET", "http://api.example.com@evil.org/"),
        ("GET", "http://evil.org#@api.example.com/"),
        ("GET", "http://evil.org\\@api.example.com/"),
        ("GET", "file:///etc/passwd"),
        ("GET", "http://api.example.com:0/"),
        ("OPTIONS", "*"),
    ],
)
def test_what_is_not_named_does_not_whatever_its_spelling(call: tuple[str, str]) -> None:
    assert not passes(*call)


@pytest.mark.parametrize("entry", ["", "*", "*.", "a b", "a/b", "a..b", "-a", "a:0", "a:70000", "http://a", "a:b", ".a", "a\n"])
def test_an_entry_that_names_no_host_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="is not a host"):
        egress_rules.parse_rules([entry])


def test_nothing_passes_an_empty_list() -> None:
    with pytest.raises(egress.Refused, match="add it there"):
        egress_rules.check(egress_rules.parse_call("CONNECT", "api.example.com:443")[0], ())
