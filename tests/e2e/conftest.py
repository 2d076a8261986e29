"""One real host for the end-to-end tests: its own home, its own PostgreSQL, its own port, driven through the CLI."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True, slots=True)
class Result:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(slots=True)
class Host:
    """A running host. `cli` runs a command against it; `call` speaks HTTP to it."""

    home: Path
    port: int
    env: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return (self.home / "admin.key").read_text().strip()

    def cli(
        self,
        *arguments: str,
        cwd: Path | None = None,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 100,
    ) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "nexus.cli.main", *arguments],
            cwd=cwd,
            input=stdin if stdin is not None else "",
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str, cwd: Path | None = None, stdin: str | None = None, timeout: float = 100) -> Result:
        result = self.cli(*arguments, cwd=cwd, stdin=stdin, timeout=timeout)
        assert result.code == 0, f"{arguments} ended with {result.code}\n{result.out}\n{result.err}"
        return result

    def call(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30,
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, body (parsed when JSON) and headers."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("Authorization", f"Bearer {self.key if key is None else key}")
        if data is not None:
            request.add_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, _parsed(answer.read(), answer.headers), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _parsed(error.read(), error.headers), dict(error.headers)

    def run(self, agent: str, value: Any, **headers: str) -> tuple[int, Any]:
        named = {name.replace("_", "-"): content for name, content in headers.items()}
        status, body, _ = self.call("POST", f"/agents/{agent}/run", {"input": value}, headers=named)
        return status, body


def _parsed(body: bytes, headers: Any) -> Any:
    return json.loads(body) if "json" in (headers.get("Content-Type") or "") and body else body.decode("utf-8", "replace")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def write_agent(
    folder: Path, name: str, code: str, *, config: str = "", version: str | None = "1.0.0", requirements: str | None = None
) -> Path:
    """A project folder with `config.yaml` and `agent.py`."""
    project = folder / name
    project.mkdir(parents=True, exist_ok=True)
    lines = [f"name: {name}"] + ([f"version: {version}"] if version else []) + ["entrypoint: agent:agent"]
    (project / "config.yaml").write_text("\n".join(lines) + "\n" + textwrap.dedent(config))
    (project / "agent.py").write_text(textwrap.dedent(code))
    if requirements is not None:
        (project / "requirements.txt").write_text(requirements)
    return project


def start_host(home: Path, **extra: str) -> Host:
    port = free_port()
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NEXUS_", "OPENAI_", "ANTHROPIC_", "OTEL_EXPORTER"))
    }
    env |= {"NEXUS_HOME": str(home), "NEXUS_PORT": str(port), "NO_COLOR": "1", "COLUMNS": "200", **extra}
    host = Host(home=home, port=port, env=env)
    host.ok("up", "-d", timeout=60)
    return host


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The shared host of a test session; tests deploy agents of their own names on it."""
    running = start_host(tmp_path_factory.mktemp("nexus home"), NEXUS_EGRESS_ALLOW="127.0.0.1/32")
    try:
        yield running
    finally:
        running.cli("down", timeout=60)


@pytest.fixture
def own_host(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host of this test's own, for tests that kill parts of it. Parametrised, it takes more environment."""
    running = start_host(tmp_path / "home", NEXUS_EGRESS_ALLOW="127.0.0.1/32", **getattr(request, "param", {}))
    try:
        yield running
    finally:
        running.cli("down", timeout=60)


def until(condition: Any, *, timeout: float = 30, what: str = "the condition") -> Any:
    """Poll until `condition()` is true and return it; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true within {timeout} s")
