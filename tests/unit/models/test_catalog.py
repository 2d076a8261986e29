"""Which names the catalogue knows for which environment, and where each leads."""

from pathlib import Path

import pytest

from nexus.kit import home as homes
from nexus.models import catalog
from nexus.wire import feed

HOME = homes.Home(Path("/srv/nexus"))
OPENAI = {"OPENAI_API_KEY": "sk-openai"}
ANTHROPIC = {"ANTHROPIC_API_KEY": "sk-ant"}


@pytest.mark.parametrize(
    ("environment", "default", "names"),
    [
        ({}, "smollm2", {"smollm2"}),
        (OPENAI, catalog.OPENAI_DEFAULT, {"smollm2", "openai/*", "*"}),
        (ANTHROPIC, catalog.ANTHROPIC_DEFAULT, {"smollm2", "anthropic/*", "claude-*"}),
        (OPENAI | ANTHROPIC, catalog.OPENAI_DEFAULT, {"smollm2", "openai/*", "*", "anthropic/*", "claude-*"}),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:8000/v1"}, catalog.OPENAI_DEFAULT, {"smollm2", "openai/*", "*"}),
        ({"OPENAI_API_KEY": "  "}, "smollm2", {"smollm2"}),
        (OPENAI | {"NEXUS_MODEL": "gpt-9"}, "gpt-9", {"smollm2", "openai/*", "*"}),
        (OPENAI | {"NEXUS_MODEL": "gpt-9", "NEXUS_DEFAULT_MODEL": "smollm2"}, "smollm2", {"smollm2", "openai/*", "*"}),
        ({"NEXUS_MODEL": "default"}, "smollm2", {"smollm2"}),
    ],
)
def test_entries_and_default_follow_the_environment(environment: dict[str, str], default: str, names: set[str]) -> None:
    found = catalog.load_entries(environment, HOME)
    assert (found.default_model, set(found.entries), found.problems) == (default, names | {default}, ())
    assert "*" not in found.entries[default]["upstream_model"]


def test_a_default_that_leads_nowhere_is_a_problem_and_the_host_still_has_one() -> None:
    found = catalog.load_entries({"NEXUS_MODEL": "gpt-9"}, HOME)
    assert found.default_model == "smollm2"
    assert [problem.code for problem in found.problems] == ["model.not_found"]


@pytest.mark.parametrize(
    ("name", "provider", "upstream"),
    [
        ("smollm2", "local", "smollm2"),
        ("gpt-5", "openai", "gpt-5"),
        ("openai/claude-like", "openai", "claude-like"),
        ("claude-opus-9", "anthropic", "claude-opus-9"),
        ("anthropic/claude-opus-9", "anthropic", "claude-opus-9"),
    ],
)
def test_a_name_leads_to_the_longest_pattern_that_fits(name: str, provider: str, upstream: str) -> None:
    entry = feed.resolve_model(catalog.load_entries(OPENAI | ANTHROPIC, HOME).entries, name)
    assert entry is not None
    assert (entry["provider"], entry["upstream_model"]) == (provider, upstream)


@pytest.mark.parametrize("name", ["*", "claude-*", "openai/*"])
def test_a_pattern_is_not_a_name(name: str) -> None:
    assert feed.resolve_model(catalog.load_entries(OPENAI | ANTHROPIC, HOME).entries, name) is None


def test_credentials_are_in_headers_and_nowhere_else() -> None:
    found = catalog.load_entries(OPENAI | ANTHROPIC, HOME)
    assert found.entries["*"]["headers"] == {"authorization": "Bearer sk-openai"}
    assert found.entries["claude-*"]["headers"]["x-api-key"] == "sk-ant"
    assert "sk-" not in repr(found)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("https://api.example.com", "https://api.example.com/v1"),
        ("https://api.example.com/", "https://api.example.com/v1"),
        ("http://127.0.0.1:9/v1/", "http://127.0.0.1:9/v1"),
    ],
)
def test_anthropics_base_url_gets_the_prefix_its_vendor_leaves_out(given: str, used: str) -> None:
    entries = catalog.load_entries(ANTHROPIC | {"ANTHROPIC_BASE_URL": given}, HOME).entries
    assert entries["claude-*"]["base_url"] == used


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({"OPENAI_API_KEY": "sk-a b"}, "model.bad_credential"),
        ({"OPENAI_API_KEY": "sk-a\r\nx-evil: 1"}, "model.bad_credential"),
        ({"OPENAI_API_KEY": "sk-é"}, "model.bad_credential"),
        (OPENAI | {"OPENAI_BASE_URL": "ftp://host/v1"}, "model.bad_base_url"),
        (OPENAI | {"OPENAI_BASE_URL": "api.openai.com"}, "model.bad_base_url"),
        (OPENAI | {"OPENAI_BASE_URL": "https://user:secret@host/v1"}, "model.bad_base_url"),
        (OPENAI | {"OPENAI_BASE_URL": "https://host:99999/v1"}, "model.bad_base_url"),
        (OPENAI | {"OPENAI_BASE_URL": "https://ho st/v1"}, "model.bad_base_url"),
        (OPENAI | {"OPENAI_BASE_URL": "https://[::1/v1"}, "model.bad_base_url"),
    ],
)
def test_a_wrong_setting_leaves_its_provider_out_and_shows_no_secret(environment: dict[str, str], code: str) -> None:
    found = catalog.load_entries(environment, HOME)
    assert set(found.entries) == {"smollm2"}
    assert [problem.code for problem in found.problems] == [code]
    for problem in found.problems:
        assert "sk-" not in problem.message
        assert "secret" not in problem.message
        assert problem.next_step
