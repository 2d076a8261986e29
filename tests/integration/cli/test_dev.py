"""`nexus ai agent dev` with the real worker: it answers, reloads, survives the author's mistakes and leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(slots=True)
class Dev:
    process: subprocess.Popen[str]
    folder: Path
    port: int

    def until(self, name: str) -> Any:
        """Read events up to the first called `name`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == name:
                return event
        raise AssertionError(f"it ended without {name}")

    def run(self, value: str, path: str = "/agents/echo/run") -> Any:
        body = json.dumps({"input": value}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())["output"]

    def write(self, code: str, name: str = "agent.py") -> None:
        """Replace a file in one step, so that half of it is never seen."""
        beside = self.folder / ".writing"
        beside.write_text(code)
        os.replace(beside, self.folder / name)


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    folder = tmp_path / "an agent"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: echo\nhosting:\n  env:\n    GREETING: hello\n")
    (folder / "agent.py").write_text("import os\ndef agent(input): return os.environ['GREETING'] + ' ' + input\n")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("NEXUS_", "OPENAI_", "ANTHROPIC_"))}
    env |= {"NEXUS_HOME": str(tmp_path / "home"), "NEXUS_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "nexus.cli.main", "ai", "agent", "dev", str(folder), "--port", str(port), "--json"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Dev(process, folder, port)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=20)
            finally:
                process.kill()


def test_an_agent_is_reloaded_when_it_changes_and_every_mistake_is_survived(dev: Dev) -> None:
    ready = dev.until("ready")
    assert ready["url"] == f"http://127.0.0.1:{dev.port}/agents/echo/run"
    assert dev.run("you") == "hello you"
    assert dev.run("you", "/run") == "hello you"
    dev.write("def agent(input):\n    print('printed', input)\n    return 'changed'\n")
    assert dev.until("changed")["files"] == "agent.py"
    dev.until("ready")
    assert dev.run("x") == "changed"
    assert dev.until("log")["message"] in ("printed x", "ready: echo dev (function)")
    for name, code, expected in (
        ("agent.py", "def agent(:\n", "SyntaxError"),
        ("agent.py", "raise RuntimeError('at import')\n", "at import"),
        ("config.yaml", "name: echo\nhostng: {}\n", "config.yaml:2:1"),
        ("config.yaml", "name: echo\n", "at import"),
        ("agent.py", "import os\nos._exit(3)\n", "exit code 3"),
        ("agent.py", "x = 1\n", "entrypoint.not_found"),
    ):
        dev.write(code, name)
        assert expected in json.dumps(dev.until("failed")["error"])
    dev.write("def agent(input): return 'mended'\n")
    dev.until("ready")
    assert dev.run("x") == "mended"


def test_an_agent_that_exits_in_a_run_waits_for_a_change(dev: Dev) -> None:
    dev.until("ready")
    dev.write("import os\ndef agent(input): os._exit(3)\n")
    dev.until("ready")
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        dev.run("x")
    assert dev.until("failed")["error"]["cause"] == "exit code 3"
    dev.write("def agent(input): return 'mended'\n")
    dev.until("ready")
    assert dev.run("x") == "mended"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_takes_its_worker_with_it(dev: Dev, number: signal.Signals) -> None:
    worker = dev.until("ready")["pid"]
    dev.process.send_signal(number)
    dev.process.communicate(timeout=20)
    assert not Path(f"/proc/{worker}").exists()


def test_a_port_in_use_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: echo\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "nexus.cli.main",
            "ai",
            "agent",
            "dev",
            str(tmp_path),
            "-p",
            str(port),
            "--json",
            "--no-host",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (6, "port.in_use")
