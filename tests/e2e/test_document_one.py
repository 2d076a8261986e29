"""Document 1 ("Agent Hosting") heading by heading, as a new user would go through it."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from nexus import AsyncClient, Client
from tests.e2e.conftest import Host, until, write_agent

CODE = """
import asyncio
import os
from nexus.ai.agents import Agent

class MyAgent(Agent):
    def __init__(self):
        self.api_key = os.environ.get("EXTERNAL_API_KEY", "none")

    async def process(self, input: str):
        if input == "secret":
            return self.api_key[:4]
        if input == "count":
            self.state["seen"] = self.state.get("seen", 0) + 1
            return str(self.state["seen"])
        if input == "long":
            for step in range(4):
                self.progress(step * 25, f"step {step}")
                await asyncio.sleep(0)
            return "report"
        if input == "env":
            return os.environ["LOG_LEVEL"]
        print("handling", input)
        return f"The analysis shows that {input}"

agent = MyAgent()
"""
CONFIG = """
hosting:
  cpu: 500m
  memory: 512Mi
  replicas:
    min: 1
    max: 10
  autoscaling:
    enabled: true
    target_cpu: 70
    target_memory: 80
  health:
    path: /health
    interval: 10s
    timeout: 5s
  env:
    LOG_LEVEL: info
  secrets:
    - EXTERNAL_API_KEY
"""


@pytest.fixture(scope="module")
def project(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_agent(tmp_path_factory.mktemp("projects"), "my-agent", CODE, config=CONFIG)
    host.ok("ai", "agent", "secret", "set", "my-agent", "EXTERNAL_API_KEY", "sk-12345", cwd=folder)
    host.ok("ai", "agent", "deploy", "my-agent", "--env", "production", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def client(host: Host, project: Path) -> Iterator[Client]:
    with Client(base_url=host.url, api_key=host.key) as opened:
        yield opened


@pytest.fixture
def receiver() -> Iterator[tuple[str, SimpleQueue[tuple[dict[str, str], Any]]]]:
    """A webhook receiver: its URL, and what arrived."""
    arrived: SimpleQueue[tuple[dict[str, str], Any]] = SimpleQueue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()
            arrived.put(({name.lower(): value for name, value in self.headers.items()}, json.loads(body)))

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/callback", arrived
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_deploying_prints_the_url_and_a_curl_that_works(host: Host, project: Path) -> None:
    result = host.ok("ai", "agent", "deploy", "my-agent", "--env", "production", cwd=project)
    assert f"{host.url}/agents/my-agent/run" in result.out
    assert "curl" in result.out


def test_deploy_options(host: Host, project: Path) -> None:
    host.ok(
        "ai",
        "agent",
        "deploy",
        "my-agent",
        "--env",
        "production",
        "--replicas",
        "3",
        "--cpu",
        "1000m",
        "--memory",
        "1Gi",
        cwd=project,
    )
    shown = host.ok("ai", "agent", "show", "my-agent", "--json").json
    production = next(entry for entry in shown["deployments"] if entry["environment"] == "production")
    assert production["replicas"] == 3
    assert production["ready"] == 3


def test_synchronous_run_over_http(host: Host, project: Path) -> None:
    status, body, headers = host.call(
        "POST", "/agents/my-agent/run", {"input": "Analyze this document", "context": {"user_id": "123"}}
    )
    assert status == 200
    assert body["output"] == "The analysis shows that Analyze this document"
    assert body["metadata"]["tokens_used"] == 0
    assert headers["Nexus-Run-Id"].startswith("run_")


def test_asynchronous_run_status_and_webhook(client: Client, receiver: tuple[str, SimpleQueue[Any]]) -> None:
    url, arrived = receiver
    response = client.agents.submit("my-agent", input="long", webhook=url)
    assert response["status"] == "pending"
    assert response["task_id"].startswith("task_")
    status = until(lambda: (seen := client.agents.status(response["task_id"]))["status"] == "completed" and seen, what="the task")
    assert status["output"] == "report"
    headers, body = arrived.get(timeout=15)
    assert headers["webhook-signature"].startswith("v1,")
    assert body["data"]["task_id"] == response["task_id"]
    assert body["data"]["output"] == "report"


def test_streaming(client: Client) -> None:
    stream = client.agents.stream("my-agent", input="quantum physics")
    assert "".join(chunk.text for chunk in stream) == "The analysis shows that quantum physics"


async def test_the_asynchronous_client_does_the_same(host: Host, project: Path) -> None:
    async with AsyncClient(base_url=host.url, api_key=host.key) as client:
        answer = await client.agents.run("my-agent", "again")
        assert answer.output == "The analysis shows that again"
        assert (
            "".join([chunk.text async for chunk in client.agents.stream("my-agent", input="more")])
            == "The analysis shows that more"
        )


def test_environment_variables_and_secrets_reach_the_agent_only(host: Host, project: Path) -> None:
    assert host.run("my-agent", "env")[1]["output"] == "info"
    assert host.run("my-agent", "secret")[1]["output"] == "sk-1"
    listed = host.ok("ai", "agent", "secret", "list", "my-agent")
    assert "EXTERNAL_API_KEY" in listed.out
    assert "sk-12345" not in listed.out
    for file in host.home.rglob("*"):
        if file.is_file() and "postgres" not in file.parts:
            assert b"sk-12345" not in file.read_bytes(), file


def test_two_runs_of_one_session_share_state(host: Host, project: Path) -> None:
    counts = [host.run("my-agent", "count", Nexus_Session_Id="conversation-1")[1]["output"] for _ in range(3)]
    assert counts == ["1", "2", "3"]
    assert host.run("my-agent", "count", Nexus_Session_Id="conversation-2")[1]["output"] == "1"


def test_logs_carry_run_and_session_and_filter(host: Host, project: Path) -> None:
    _, _body, headers = host.call("POST", "/agents/my-agent/run", {"input": "log me"}, headers={"Nexus-Session-Id": "logged"})

    def lines() -> list[dict[str, Any]]:
        out = host.ok("ai", "agent", "logs", "my-agent", "--json", "--since", "1h").out
        return [line for text in out.splitlines() if (line := json.loads(text))["message"] == "handling log me"]

    (line,) = until(lines, what="the log line")
    assert line["run_id"] == headers["Nexus-Run-Id"]
    assert line["session_id"] == "logged"
    errors_only = host.ok("ai", "agent", "logs", "my-agent", "--level", "error", "--since", "1h", "--json").out
    assert "handling" not in errors_only


def test_the_five_metrics(host: Host, project: Path) -> None:
    host.run("my-agent", "metric")

    def exposed() -> str | None:
        text = host.call("GET", "/metrics")[1]
        return text if "agent_requests_total{" in text and 'agent="my-agent"' in text else None

    text = until(exposed, what="the metrics")
    for name in ("agent_requests_total", "agent_latency_seconds", "agent_tokens_total", "agent_errors_total", "agent_queue_size"):
        assert f"# TYPE {name}" in text.replace("_total counter", "_total counter"), name


def test_scaling_by_hand_and_automatic(host: Host, project: Path) -> None:
    host.ok("ai", "agent", "scale", "my-agent", "--replicas", "5")
    shown = until(
        lambda: (entry := host.ok("ai", "agent", "show", "my-agent", "--json").json["deployments"][0])["ready"] == 5 and entry,
        what="five replicas",
    )
    assert shown["replicas"] == 5
    host.ok("ai", "agent", "scale", "my-agent", "--autoscale", "on")
    assert host.ok("ai", "agent", "show", "my-agent", "--json").json["deployments"][0]["autoscale"]["enabled"] is True
    host.ok("ai", "agent", "scale", "my-agent", "--autoscale", "off")
    assert host.ok("ai", "agent", "show", "my-agent", "--json").json["deployments"][0]["autoscale"]["enabled"] is False
    host.ok("ai", "agent", "scale", "my-agent", "--replicas", "2")


def test_history_and_rollback(host: Host, project: Path) -> None:
    config = project / "config.yaml"
    config.write_text(config.read_text().replace("version: 1.0.0", "version: 1.2.3"))
    code = project / "agent.py"
    code.write_text(code.read_text().replace("The analysis shows", "The newer analysis shows"))
    host.ok("ai", "agent", "deploy", "my-agent", "--env", "production", cwd=project)
    assert host.run("my-agent", "x")[1]["output"].startswith("The newer")
    history = host.ok("ai", "agent", "history", "my-agent").out
    assert "1.0.0" in history
    assert "1.2.3" in history
    host.ok("ai", "agent", "rollback", "my-agent")
    assert host.run("my-agent", "x")[1]["output"].startswith("The analysis")
    host.ok("ai", "agent", "rollback", "my-agent", "--version", "1.2.3")
    assert host.run("my-agent", "x")[1]["output"].startswith("The newer")


def test_changing_and_deleting_a_secret_restarts_by_rolling(host: Host, project: Path) -> None:
    host.ok("ai", "agent", "secret", "set", "my-agent", "EXTERNAL_API_KEY", stdin="zz-98765\n")
    until(lambda: host.run("my-agent", "secret")[1].get("output") == "zz-9", what="the new secret")
    before = (host.home / "master.key").read_bytes()
    assert host.ok("keys", "rotate-master", "--json").json["rewrapped"] >= 1
    assert (host.home / "master.key").read_bytes() != before
    until(lambda: host.run("my-agent", "secret")[1].get("output") == "zz-9", what="the new secret, still")
    host.ok("ai", "agent", "secret", "delete", "my-agent", "EXTERNAL_API_KEY")
    assert "EXTERNAL_API_KEY" not in host.ok("ai", "agent", "secret", "list", "my-agent", "--json").out
