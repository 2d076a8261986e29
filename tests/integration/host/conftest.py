"""A home of its own for each test, reachable for a database's user, and nothing left running behind it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from nexus.apps import keeper_probe, keeper_record
from nexus.core import errors
from nexus.kit.home import Home
from nexus.stores import embedded

T = TypeVar("T")
SMALL = str(Path(__file__).with_name("small_host.py"))


@dataclass
class Rig:
    """Starts keepers over one home and looks at what they do, from outside."""

    home: Home
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        base = {name: value for name, value in os.environ.items() if not name.startswith("NEXUS_")}
        return {**base, "NEXUS_HOME": str(self.home.root), "NEXUS_PORT": "0", "NEXUS_GATEWAYS": "2", **more}

    def start(self, *options: str, **more: str) -> "subprocess.Popen[str]":
        """A keeper in the foreground over small servers."""
        process = subprocess.Popen(
            [sys.executable, SMALL, *options],
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def wait_for(self, ask: Callable[[], T | None], what: str, within_s: float = 20.0) -> T:
        """The first true answer; fails the test when there is none in time."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, LookupError):
                if answer := ask():
                    return answer
            time.sleep(0.01)
        pytest.fail(f"waited {within_s} s for {what}; log: {self.logs()}")

    def wait_ready(self) -> keeper_record.HostRecord:
        def ask() -> keeper_record.HostRecord | None:
            record = keeper_record.read(self.home)
            return record if record and record.ready and keeper_record.is_alive(record) else None

        return self.wait_for(ask, "a ready host")

    def process(self, name: str) -> keeper_record.ProcessRecord | None:
        record = keeper_record.read(self.home)
        return next((entry for entry in record.processes if entry.name == name), None) if record else None

    def answers(self, name: str) -> int | None:
        """The process id that answers for `name` now."""
        record = keeper_record.read(self.home)
        if record is None:
            return None
        own = {"control": self.home.control_socket, "supervisor": self.home.supervisor_socket}
        address = (own | {"dispatcher-0": self.home.dispatcher_socket(0)}).get(name)
        answer = keeper_probe.ask(address or (record.host, record.port), "/health")
        return int(answer[1]["pid"]) if answer and answer[0] == 200 else None

    def logs(self) -> str:
        return "\n".join(f"--{path.name}\n{path.read_text()[-600:]}" for path in self.home.logs.glob("*.log"))


@pytest.fixture
def home() -> Iterator[Home]:
    folder = Path(tempfile.mkdtemp(prefix="nexus-host-test-"))
    folder.chmod(0o711)
    found = Home(folder / "home with space")
    yield found
    _clear(found)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def rig(home: Home) -> Iterator[Rig]:
    found = Rig(home)
    yield found
    _clear(home)
    for process in found.started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


def _clear(home: Home) -> None:
    for _ in range(2):  # the keeper first, or it would start them again
        record = keeper_record.read(home)
        for entry in [record, *record.processes] if record else []:
            if keeper_record.is_alive(entry):
                os.kill(entry.pid, signal.SIGKILL)
    with contextlib.suppress(errors.NexusError):
        embedded.discard(home)
    shutil.rmtree(home.run, ignore_errors=True)
