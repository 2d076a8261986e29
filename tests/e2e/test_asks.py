"""A task that asks a person on a host that is killed meanwhile, its replay on another version, and a webhook as a trigger."""

import contextlib
import http.server
import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks

from tests.e2e.conftest import Host, until, write_agent

CODE = """
import random

from nexus.ai.agents import ask, step


def agent(input):
    number = step("number", random.random)
    return {"number": number, "said": ask("Refund QUESTION?", choices=["yes", "no"])}
"""


@pytest.fixture
def received() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook's receiver: its URL and what came."""
    came: list[dict[str, Any]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", came
    server.shutdown()
    thread.join()
    server.server_close()


def kill_everything(host: Host) -> None:
    """SIGKILL to every process of the host until there is none: control that sees its keeper die starts another one meanwhile."""
    wanted = f"NEXUS_HOME={host.home}".encode()

    def kill() -> bool:
        found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_of(entry, wanted)]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found

    until(kill, what="the end of every process")


def _is_of(process: Path, wanted: bytes) -> bool:
    try:
        return wanted in (process / "environ").read_bytes().split(b"\0") and b"nexus" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def test_a_question_outlives_the_host(own_host: Host, tmp_path: Path, received: tuple[str, list[dict[str, Any]]]) -> None:
    host, (url, came) = own_host, received
    folder = write_agent(tmp_path, "asker", CODE.replace("QUESTION", "it"))
    host.ok("ai", "agent", "deploy", "asker", "--env", "staging", cwd=folder)
    task = host.ok("ai", "agent", "submit", "asker", "hello", "--webhook", url, "--json").json["task_id"]
    until(lambda: host.call("GET", f"/tasks/{task}")[1]["status"] == "waiting", what="the question")
    (told,) = until(lambda: came, what="the webhook")
    assert (told["type"], told["data"]["question"], told["data"]["choices"]) == ("ask.opened", "Refund it?", ["yes", "no"])
    assert host.call("POST", "/agents/asker/run", {"input": "x"})[1]["code"] == "ask.not_a_task"

    kill_everything(host)
    host.ok("up", "-d", timeout=60)
    with urllib.request.urlopen(told["data"]["url"]) as page:
        assert "Refund it?" in page.read().decode()
    assert "Refund it?" in host.ok("ai", "agent", "task", "asks").out
    assert "Refund it?" in host.ok("ai", "agent", "task", "status", task).out
    wrong = host.cli("ai", "agent", "task", "answer", task, "perhaps", "--json")
    assert (wrong.code, wrong.json["error"]["code"]) == (2, "ask.invalid_answer")
    host.ok("ai", "agent", "task", "answer", task, "yes")
    done = host.ok("ai", "agent", "task", "wait", task, "--json").json
    assert (done["status"], done["output"]["said"]) == ("completed", "yes")
    assert [entry["type"] for entry in until(lambda: came if len(came) > 1 else None)] == ["ask.opened", "task.completed"]

    same = host.ok("ai", "agent", "task", "replay", task, "--json").json
    assert (same["same"], same["replayed_calls"], same["replayed_version"]) == (True, 2, "1.0.0")
    write_agent(tmp_path, "asker", CODE.replace("QUESTION", "that"), version="2.0.0")
    host.ok("ai", "agent", "deploy", "asker", "--env", "staging", cwd=folder)
    other = host.cli("ai", "agent", "task", "replay", task, "--version", "2.0.0")
    assert other.code == 10
    assert "Refund that?" in other.out
    listed = host.call("GET", "/v1/agents/asker")[1]["deployments"]
    assert all(one["environment"] == "staging" or one["phase"] == "stopping" for one in listed)

    made = host.ok("triggers", "create", "orders", "asker", "--hook", "standard", "--json").json
    body = json.dumps({"type": "order"})
    now = datetime.fromtimestamp(time.time(), UTC)
    signed = standardwebhooks.Webhook(made["secret"]).sign("msg_1", now, body)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signed}
    path = made["url"].removeprefix(host.url)
    first, again = (host.call("POST", path, body.encode(), key="", headers=headers) for _ in range(2))
    assert (first[0], again[1]) == (202, first[1])
    assert host.call("POST", path, body.encode() + b" ", key="", headers=headers)[0] == 401
    assert host.ok("triggers", "list", "--json").json[0]["taken"] == 1
    host.ok("triggers", "delete", "orders")
