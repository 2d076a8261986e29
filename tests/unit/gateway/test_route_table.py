"""Snapshots and deltas become whole tables, or nothing at all."""

import copy

import pytest

from nexus.gateway import routes

KEY = {
    "id": "key_1", "tenant": "acme", "roles": ["developer"], "environment": None, "agents": None, "expires_at": None,
    "requests_per_minute": None,
}  # fmt: skip
DEPLOYMENT = {
    "id": "dep_1", "revision": 1, "balancer": "round-robin", "instances": [{"id": "ins_1", "address": "unix:/a", "version": "1"}],
    "timeout_s": 1, "wait_s": 1, "max_concurrency": None, "max_queue": 1,
}  # fmt: skip
ENTRIES = {
    "key/aa": KEY,
    "key/bb": {**KEY, "roles": ["service", "something-new"]},
    "token/cc": {"instance_id": "ins_1", "tenant": "acme", "agent": "a", "environment": "production"},
    "model/m": {"provider": "p", "base_url": "unix:/m", "headers": {}, "upstream_model": "m", "dialects": ["openai"]},
    "deployment/acme/a/production": DEPLOYMENT,
    "settings": {"hosts": ["Agents.Example"], "origins": [], "default_model": "m", "max_body_bytes": 5},
    "something/later": {"unknown": True},
}


def table():
    return routes.plan_snapshot(routes.RouteTable(), {"epoch": "e", "version": 3, "entries": copy.deepcopy(ENTRIES)})


def delta(set_=None, delete=(), **fields):
    return {"epoch": "e", "previous": 3, "version": 4, "set": set_ or {}, "delete": list(delete), **fields}


def test_a_snapshot_is_compiled():
    made = table()
    assert (made.epoch, made.version, made.max_body_bytes, made.default_model) == ("e", 3, 5, "m")
    assert made.hosts == {"agents.example"}
    assert made.keys["aa"].may_run
    assert made.keys["bb"].service
    assert made.tokens["cc"].token["instance_id"] == "ins_1"
    assert made.agents["acme", "a"]["production"].instances[0].address == "unix:/a"


def test_a_delta_makes_a_new_table_and_leaves_the_old_one_as_it_was():
    old = table()
    new = routes.plan_delta(old, delta({"deployment/acme/a/staging": DEPLOYMENT}, ["key/aa", "model/m", "deployment/acme/x/y"]))
    assert set(new.agents["acme", "a"]) == {"production", "staging"}
    assert set(old.agents["acme", "a"]) == {"production"}
    assert ("aa" in new.keys, "aa" in old.keys) == (False, True)
    assert new.models == {}
    gone = routes.plan_delta(
        new, delta(delete=["deployment/acme/a/staging", "deployment/acme/a/production"], previous=4, version=5)
    )
    assert ("acme", "a") not in gone.agents


def test_an_instance_keeps_what_was_seen_of_it_until_it_is_another():
    old = table()
    one = old.agents["acme", "a"]["production"].instances[0]
    one.active = 3
    same = routes.plan_delta(old, delta({"deployment/acme/a/production": {**DEPLOYMENT, "revision": 2}}))
    assert same.agents["acme", "a"]["production"].instances[0] is one
    again = routes.plan_snapshot(same, {"epoch": "f", "version": 1, "entries": ENTRIES})
    assert again.agents["acme", "a"]["production"].instances[0] is one
    moved = {**DEPLOYMENT, "instances": [{"id": "ins_1", "address": "unix:/b", "version": "1"}]}
    assert (
        routes.plan_delta(old, delta({"deployment/acme/a/production": moved}))
        .agents["acme", "a"]["production"]
        .instances[0]
        .active
        == 0
    )


@pytest.mark.parametrize(
    "change",
    [
        {"previous": 2},
        {"epoch": "other"},
        {"set": {"key/zz": {}}},
        {"set": {"key/zz": None}},
        {"set": {"deployment/acme/a": DEPLOYMENT}},
        {"set": {"deployment/acme/a/b": {**DEPLOYMENT, "instances": [{"id": "i", "address": "http://x", "version": "1"}]}}},
        {"set": {"model/m": {**ENTRIES["model/m"], "headers": {"X": "a\r\nY: b"}}}},
        {"set": None},
        {"delete": None},
        {"set": {"deployment/acme/a/b": {**DEPLOYMENT, "timeout_s": "soon"}}},
    ],
)
def test_a_delta_that_does_not_follow_or_cannot_be_read_is_refused_whole(change):
    with pytest.raises(routes.FeedBroken):
        routes.plan_delta(table(), {**delta(), **change})


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("unix:/a/b.sock", ("unix", "/a/b.sock", 0)),
        ("tcp:10.0.0.1:80", ("tcp", "10.0.0.1", 80)),
        ("tcp:[::1]:80", ("tcp", "::1", 80)),
        ("tls:api.example:443", ("tls", "api.example", 443)),
    ],
)
def test_addresses(address, parsed):
    assert routes.parse_address(address) == parsed


@pytest.mark.parametrize(
    "address", ["", "unix:", "unix:relative", "tcp:host", "tcp::80", "tcp:h:0", "tcp:h:65536", "http://h:80"]
)
def test_bad_addresses(address):
    with pytest.raises(ValueError, match="neither"):
        routes.parse_address(address)
