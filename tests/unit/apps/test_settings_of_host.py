"""The host's settings: what is read, what is refused, and what never reaches which process."""

import pytest

from nexus.apps import keeper_children, settings
from nexus.cli import exits
from nexus.core import errors


def test_defaults_are_loopback_and_one_gateway_per_core(tmp_path):
    found = settings.read_settings({"NEXUS_HOME": str(tmp_path)})
    assert (found.origin, found.gateways, found.database_url) == ("http://127.0.0.1:8700", settings.count_cores(), None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NEXUS_PORT", "-1"),
        ("NEXUS_PORT", "65536"),
        ("NEXUS_PORT", "٣"),
        ("NEXUS_PORT", "9" * 40),
        ("NEXUS_GATEWAYS", "0"),
        ("NEXUS_GATEWAYS", "17"),
        ("NEXUS_DISPATCHERS", "9"),
        ("NEXUS_DATABASE_URL", "mysql://root:hunter2@db/x"),
    ],
)
def test_an_unusable_value_is_refused_by_name_and_a_password_is_not_repeated(name, value):
    with pytest.raises(errors.Invalid) as caught:
        settings.read_settings({name: value})
    assert caught.value.code == "setting.invalid"
    text = " ".join(settings.explain(caught.value))
    assert name in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("::1", "http://[::1]:1"),
        ("nexus.example", "http://nexus.example:1"),
    ],
)
def test_the_origin_is_an_url_one_can_open(host, origin):
    assert settings.render_origin(host, 1) == origin


def test_exit_codes_are_those_of_the_command_line():
    assert dict(settings.EXIT_CODES) == dict(exits.CODES)


def test_only_control_sees_keys_and_passwords(tmp_path):
    environ = {
        "PATH": "/bin",
        "OPENAI_API_KEY": "sk-1",
        "ANTHROPIC_API_KEY": "sk-2",
        "NEXUS_MASTER_KEY": "m",
        "NEXUS_API_KEY": "nxk_1",
        "AWS_SECRET_ACCESS_KEY": "a",
        "UV_INDEX_URL": "u",
        "NEXUS_EGRESS_ALLOW": "10.0.0.0/8",
        "NEXUS_DATABASE_URL": "postgresql://outer:secret@db/nexus",
    }
    host = settings.read_settings({**environ, "NEXUS_HOME": str(tmp_path), "NEXUS_GATEWAYS": "2", "NEXUS_DISPATCHERS": "1"})
    children = {child.name: child for child in keeper_children.plan_children(host, environ, "postgresql://inner")}
    assert list(children) == [
        "control",
        "supervisor",
        "dispatcher-0",
        "gateway-0",
        "gateway-1",
    ]  # an URL of one's own: no PostgreSQL of ours
    control = children["control"].environment
    assert control["OPENAI_API_KEY"] == "sk-1"
    assert control["NEXUS_DATABASE_URL"] == "postgresql://inner"
    assert children["dispatcher-0"].environment["NEXUS_DATABASE_URL"] == "postgresql://inner"
    for name in ("supervisor", "dispatcher-0", "gateway-0", "gateway-1"):
        seen = children[name].environment
        assert not {"OPENAI_API_KEY", "ANTHROPIC_API_KEY", "NEXUS_MASTER_KEY", "NEXUS_API_KEY", "AWS_SECRET_ACCESS_KEY"} & set(
            seen
        )
        assert ("NEXUS_DATABASE_URL" in seen) == (name == "dispatcher-0")
        assert seen["UV_INDEX_URL"] == "u"
        assert seen["NEXUS_EGRESS_ALLOW"] == "10.0.0.0/8"
    assert children["gateway-1"].environment["NEXUS_GATEWAY"] == "1"
    assert "sk-1" not in repr(children["control"])


def test_the_database_is_started_first_and_stopped_last(tmp_path):
    host = settings.read_settings({"NEXUS_HOME": str(tmp_path), "NEXUS_GATEWAYS": "1"})
    children = keeper_children.plan_children(host, {}, "postgresql://inner")
    assert children[0].name == "postgres"
    assert max(children, key=lambda child: child.rank).name == "postgres"
    assert min(children, key=lambda child: child.rank).name == "gateway-0"


def test_the_first_restart_is_at_once_and_later_ones_wait_longer_up_to_a_bound():
    pauses = [keeper_children.pause_s(failures) for failures in range(1, 12)]
    assert pauses[0] == 0.0
    assert pauses[1] <= 0.1
    assert pauses == sorted(pauses)
    assert pauses[-1] == 5.0
