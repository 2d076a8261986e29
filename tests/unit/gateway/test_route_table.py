"""Snapshots and deltas become whole tables, or nothing at all."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


HALF = {**DEPLOYMENT, "instances": [{"id": "ins_2", "address": "unix:/b", "version": "2"}]}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("tenant/acme", {}), ("tenant/acme", {"requests_per_minute": 0}), ("tenant/acme", {"requests_per_minute": "many"}),
        ("tenant/acme", []), ("tenant/", {"requests_per_minute": 1}), ("tenant/a b", {"requests_per_minute": 1}),
        ("tenant/acme", {"requests_per_minute": float("nan")}), ("tenant/acme", {"requests_per_minute": True}),
        ("key/AA BB", KEY), ("key/dd", {**KEY, "id": "x\r\nNexus-Tenant: other"}), ("key/dd", {**KEY, "roles": "admin"}),
        ("key/dd", {**KEY, "expires_at": "never"}), ("key/dd", {**KEY, "tenant": None}), ("key/dd", None),
        ("token/dd", {"instance_id": 'ins"', "tenant": "acme", "agent": "a", "environment": "p"}),
        ("deployment/acme/b", DEPLOYMENT), ("deployment/acme/B/production", DEPLOYMENT),
        ("deployment/acme/b/production", {**DEPLOYMENT, "balancer": "random"}),
        ("deployment/acme/b/production", {**DEPLOYMENT, "timeout_s": float("inf")}),
        ("deployment/acme/b/production", {**DEPLOYMENT, "max_concurrency": 0}),
        ("deployment/acme/b/production", {**DEPLOYMENT, "instances": DEPLOYMENT["instances"] * 2}),
        ("deployment/acme/b/production", {**DEPLOYMENT, "idle": DEPLOYMENT["instances"]}),
        ("deployment/acme/b/production",
         {**DEPLOYMENT, "instances": [{"id": "i", "address": "unix:/a", "version": "1\r\nx: y"}]}),
        ("settings", {"hosts": "agents.example"}), ("settings", {"hosts": [], "max_body_bytes": float("inf")}),
    ],
)  # fmt: skip
def test_a_malformed_entry_applies_nothing_of_what_came_with_it(path, value):
    old = table()
    with pytest.raises(routes.FeedBroken, match=path.split("/")[0]):
        routes.plan_delta(
            old, delta({"deployment/acme/a/production": HALF, path: value, "tenant/zeta": {"requests_per_minute": 9}})
        )
    assert old.agents["acme", "a"]["production"].instances[0].version == "1"
    assert old.tenant_rates == {}
    assert (old.version, set(old.entries)) == (3, set(ENTRIES))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_an_entry_that_is_bent_anywhere_is_refused_or_applied_whole(data):
    entries = copy.deepcopy(ENTRIES) | {"tenant/acme": {"requests_per_minute": 5}}
    path = data.draw(st.sampled_from(sorted(entries)))
    where = entries[path]
    while True:
        key = data.draw(st.sampled_from(list(where) if isinstance(where, dict) else list(range(len(where)))))
        if isinstance(where[key], dict | list) and where[key] and data.draw(st.booleans()):
            where = where[key]
            continue
        odd = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({"a": 1})
        where[key] = data.draw(odd)
        break
    before = json.dumps(entries)
    old = table()
    try:
        made = routes.plan_snapshot(old, {"epoch": "e", "version": 4, "entries": entries})
    except routes.FeedBroken:
        return
    assert json.dumps(entries) == before
    assert set(made.entries) == set(entries)
    for by_environment in made.agents.values():
        for one in by_environment.values():
            assert all("\n" not in instance.version and "\r" not in instance.version for instance in one.instances)
