"""Small decisions of the worker: paths, settings, uptime, log levels, the environment given to model clients."""

from pathlib import Path

import pytest

from nexus.worker import boot, relay, settings, vitals


def test_ours_come_first_and_the_hosts_packages_last() -> None:
    path = boot.arrange(["", "/copy", "/python/lib", "/env/site-packages"], "/copy")
    assert path == ["/copy/lib", "/python/lib", "/env/site-packages", "/copy/site"]
    assert boot.arrange(path, "/copy") == path


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59.9, "59s"), (60, "1m"), (9000, "2h 30m"), (3605, "1h"), (90061, "1d 1h"), (86400 * 3 + 5, "3d")],
)
def test_uptime_is_shown_in_two_units(seconds: float, shown: str) -> None:
    assert vitals.show_uptime(seconds) == shown


def test_settings_have_defaults_and_name_what_is_wrong() -> None:
    config = settings.parse_settings({"NEXUS_SOURCE": "/code", "PORT": "8080", "NEXUS_TOKEN": "nxi_secret"})
    assert (config.source, config.port, config.socket, config.concurrency) == (Path("/code"), 8080, None, None)
    assert "nxi_secret" not in repr(config)
    for text in ("x", "-1", "nan", "1e300"):
        with pytest.raises(ValueError, match="NEXUS_RUN_TIMEOUT_S"):
            settings.parse_settings({"NEXUS_RUN_TIMEOUT_S": text})


def test_the_authors_keys_and_proxies_are_respected() -> None:
    plain = relay.environment(4000, "nxi_t", {})
    assert plain["OPENAI_BASE_URL"] == "http://127.0.0.1:4000/v1"
    assert plain["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:4000"
    assert plain["OPENAI_API_KEY"] == plain["ANTHROPIC_API_KEY"] == "nxi_t"
    own = relay.environment(4000, "nxi_t", {"OPENAI_API_KEY": "sk", "HTTP_PROXY": "http://p", "NO_PROXY": "internal"})
    assert "OPENAI_API_KEY" not in own
    assert own["NO_PROXY"] == "internal,127.0.0.1,localhost"
