"""What a list of hosts lets through, and the spellings that try to get past it."""

import pytest

from nexus.drivers.process import egress_meter, egress_rules
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


@pytest.mark.parametrize(
    "entry", ["", "**", "*.", "*.*", "*.*:1", "a b", "a/b", "a..b", "-a", "a:0", "a:70000", "http://a", "a:b", ".a", "a\n"]
)
def test_an_entry_that_names_no_host_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="is not a host"):
        egress_rules.parse_rules([entry])


def test_a_star_is_every_host_on_usual_ports() -> None:
    rules = egress_rules.parse_rules(["*", "*:5432"])
    for port, passes_ in ((443, True), (80, True), (5432, True), (22, False)):
        target = egress_rules.parse_call("CONNECT", f"any.example.net:{port}")[0]
        assert any(rule.allows(target.host, target.port) for rule in rules) is passes_


def test_exact_names_get_a_loopback_address_each_and_nothing_else_does() -> None:
    rules = egress_rules.parse_rules(
        ["Db.example.com:5432", "db.example.com:5433", "api.example.com", "*.x.org", "10.0.0.1", "localhost"]
    )
    pins = egress_rules.plan_pins(rules)
    assert {(host, port) for host, _, port in pins} == {
        ("db.example.com", 5432),
        ("db.example.com", 5433),
        ("api.example.com", 80),
        ("api.example.com", 443),
    }
    addresses = {host: {address for name, address, _ in pins if name == host} for host, _, _ in pins}
    assert all(len(found) == 1 for found in addresses.values())
    assert len({*map(frozenset, addresses.values())}) == 2
    many = egress_rules.plan_pins(egress_rules.parse_rules([f"h{number}.example.com:1" for number in range(200)]))
    assert len(many) == 128
    assert len({address for _, address, _ in many}) == 128


def test_a_bucket_keeps_its_rate_whatever_the_pieces() -> None:
    for piece in (1000, 64_000, 1_000_000):
        bucket, now, sent = egress_meter.Bucket(1_000_000.0), 0.0, 0
        while now < 10:
            sent += piece
            now += bucket.pause(piece, now)
        assert 10_000_000 <= sent <= 10_000_000 + 250_000 + piece
    assert egress_meter.Bucket(None).pause(10**9, 0.0) == 0


def test_what_runs_use_is_kept_apart_and_does_not_grow_for_ever() -> None:
    meter = egress_meter.Meter()
    for number in range(3000):
        meter.count(egress_meter.Caller(f"run_{number}", "ses_1"), egress_meter.Tally(sent=1, connections=1))
    meter.count(egress_meter.Caller("run_2999"), egress_meter.Tally(sent=2))
    meter.count(egress_meter.Caller(), egress_meter.Tally(sent=5))
    runs: dict[str, dict[str, int]] = meter.to_json()["runs"]  # type: ignore[assignment]
    assert len(runs) == 1000
    assert runs["run_2999"] == {"sent": 3, "received": 0, "connections": 1, "refused": 0}


def test_nothing_passes_an_empty_list() -> None:
    with pytest.raises(egress.Refused, match="add it there"):
        egress_rules.check(egress_rules.parse_call("CONNECT", "api.example.com:443")[0], ())
