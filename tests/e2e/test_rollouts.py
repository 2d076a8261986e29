"""Rollouts on a real host under load: a good canary is promoted, a bad one is rolled back by itself, a switch is instant."""

import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Host, until, write_agent

GOOD = "def agent(input):\n    return 'fine'\n"
BAD = "def agent(input):\n    raise RuntimeError('this version is broken')\n"


@dataclass
class Load:
    """What callers saw, by version and status."""

    seen: Counter[tuple[str, int]] = field(default_factory=Counter)
    trouble: list[str] = field(default_factory=list)

    def statuses(self, version: str) -> set[int]:
        return {status for seen, status in self.seen if seen == version}

    def runs(self, version: str) -> int:
        return sum(count for (seen, _), count in self.seen.items() if seen == version)


@contextmanager
def load(host: Host, agent: str, *, callers: int = 3) -> Iterator[Load]:
    """Callers that run the agent again and again, each run in a session of its own."""
    found, stop, lock = Load(), threading.Event(), threading.Lock()

    def call() -> None:
        while not stop.is_set():
            try:
                session = {"Nexus-Session-Id": f"s{uuid.uuid4().hex}"}
                status, _, headers = host.call("POST", f"/agents/{agent}/run", {"input": 1}, headers=session)
            except OSError as error:
                found.trouble.append(repr(error))
                continue
            with lock:
                found.seen[headers.get("Nexus-Version", "?"), status] += 1
            stop.wait(0.01)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def deploy(host: Host, folder: Path, name: str, version: str, code: str, *options: str, config: str = "") -> Any:
    project = write_agent(folder / version, name, code, version=version, config=config)
    return host.ok("ai", "agent", "deploy", "--path", str(project), "--json", *options).json


def rollout(host: Host, name: str) -> Any:
    return host.ok("ai", "agent", "rollout", "status", name, "--json").json


CANARY = ("--strategy", "canary", "--canary-steps", "20,60", "--canary-interval", "1s", "--canary-runs", "20", "--no-wait")


def test_a_good_canary_is_promoted_and_a_bad_one_rolled_back_under_load(host: Host, tmp_path: Path) -> None:
    name, light = "canaries", "hosting: {isolation: instance}\n"  # hundreds of runs, each in a session of its own
    deploy(host, tmp_path, name, "1.0.0", GOOD, config=light)
    with load(host, name) as good:
        until(lambda: good.runs("1.0.0") > 20, what="runs of the first version")
        deploy(host, tmp_path, name, "1.1.0", GOOD, *CANARY, config=light)
        until(lambda: rollout(host, name)["phase"] == "active", what="promotion")
        before = good.runs("1.1.0")
        until(lambda: good.runs("1.1.0") > before + 20, what="runs of the second version")
    assert good.trouble == []
    assert {status for _, status in good.seen} == {200}, good.seen
    ended = rollout(host, name)
    assert (ended["version"], ended["outcome"]["decision"]) == ("1.1.0", "promoted")
    assert ended["outcome"]["numbers"]["new"]["runs"] >= 20
    with load(host, name) as bad:
        until(lambda: bad.runs("1.1.0") > 40, what="runs of the stable version")
        deploy(host, tmp_path, name, "1.2.0", BAD, *CANARY, config=light)
        until(lambda: rollout(host, name)["phase"] == "failed", what="the rollback")
        broken = bad.runs("1.2.0")
        before = bad.runs("1.1.0")
        until(lambda: bad.runs("1.1.0") > before + 50, what="runs of the stable version after the rollback")
    assert bad.trouble == []
    assert bad.statuses("1.1.0") == {200}
    assert broken > 0
    assert bad.runs("1.2.0") <= broken + 3, "nothing goes to a version that was rolled back"
    assert bad.runs("1.2.0") < 0.4 * sum(bad.seen.values()), "no more than its share was touched"
    problem = rollout(host, name)["problem"]
    assert problem["code"] == "rollout.more_errors"
    assert problem["numbers"]["new"]["errors"] >= 3
    listed = host.ok("ai", "agent", "history", name).out
    assert "canary" in listed
    assert "fails more often" in listed or "runs failed" in listed


def test_a_blue_green_switch_and_its_undoing_are_instant_and_fail_nothing(host: Host, tmp_path: Path) -> None:
    name = "colours"
    deploy(host, tmp_path, name, "1.0.0", GOOD)
    with load(host, name) as seen:
        told = deploy(host, tmp_path, name, "2.0.0", GOOD, "--strategy", "blue-green", "--manual", "--keep", "5m")
        assert told["phase"] == "rolling"
        assert seen.runs("2.0.0") == 0
        status, _, headers = host.call("POST", f"/agents/{name}/run", {"input": 1}, headers={"Nexus-Version": "2.0.0"})
        assert (status, headers["Nexus-Version"]) == (200, "2.0.0"), "green can be tried before the switch"
        host.ok("ai", "agent", "promote", name)
        until(lambda: seen.runs("2.0.0") > 20, what="runs of green")
        picture = host.ok("ai", "agent", "rollout", "status", name).out
        assert "stands by" in picture
        host.ok("ai", "agent", "abort", name)
        back = seen.runs("1.0.0")
        until(lambda: seen.runs("1.0.0") > back + 20, what="runs of blue again")
    assert seen.trouble == []
    assert {status for _, status in seen.seen} == {200}, seen.seen


def test_an_ab_test_keeps_sessions_on_their_variant_and_reports(host: Host, tmp_path: Path) -> None:
    name = "arms"
    deploy(host, tmp_path, name, "1.0.0", GOOD)
    told = deploy(host, tmp_path, name, "1.1.0", GOOD, "--variant", "control=1.0.0:50", "--variant", "treatment=1.1.0:50")
    assert told["phase"] == "rolling"

    def version_of(session: str) -> str:
        status, _, headers = host.call("POST", f"/agents/{name}/run", {"input": 1}, headers={"Nexus-Session-Id": session})
        assert status == 200
        return str(headers["Nexus-Version"])

    first = {f"visitor-{number}": version_of(f"visitor-{number}") for number in range(60)}
    assert {session: version_of(session) for session in first} == first
    assert 10 < sum(version == "1.1.0" for version in first.values()) < 50

    def compared() -> Any:
        report = host.ok("ai", "agent", "rollout", "report", name, "--json").json
        return report if sum(one["runs"] for one in report["variants"]) == 120 else None

    report = until(compared, what="the report")
    control, treatment = report["variants"]
    assert (control["name"], treatment["name"]) == ("control", "treatment")
    assert treatment["errors_vs_control"]["low"] <= 0 <= treatment["errors_vs_control"]["high"]
    refused = host.cli("ai", "agent", "promote", name, "--variant", "other", "--json")
    assert refused.json["error"]["code"] == "rollout.no_such_variant"
    host.ok("ai", "agent", "promote", name, "--variant", "treatment")
    until(lambda: rollout(host, name)["phase"] == "active", what="the end of the test")
    assert {version_of(f"newcomer-{number}") for number in range(10)} == {"1.1.0"}
    assert {session: version_of(session) for session in first} == first, "who began on the other variant stays"
    host.ok("ai", "agent", "sessions", "stop", name, "--version", "1.0.0")
    until(lambda: {version_of(session) for session in first} == {"1.1.0"}, what="everybody on the winner")


BROKEN = {
    "crashes": ("import os\ndef agent(input):\n    os._exit(3)\n", {"rollout.crashes", "rollout.more_errors"}),
    "is slow": ("import time\ndef agent(input):\n    time.sleep(1)\n", {"rollout.slower"}),
    "never answers": ("import time\ndef agent(input):\n    time.sleep(600)\n", {"rollout.stuck"}),
    "never gets ready": ("import time\ntime.sleep(600)\ndef agent(input):\n    return 1\n", {"start.timeout"}),
    "fails now and then": ("import random\ndef agent(input):\n    return 1 // random.randrange(3)\n", {"rollout.more_errors"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", BROKEN)
def test_every_broken_version_is_out_within_thirty_seconds(host: Host, tmp_path: Path, way: str) -> None:
    name, (code, expected) = f"broken-{list(BROKEN).index(way)}", BROKEN[way]
    deploy(host, tmp_path, name, "1.0.0", GOOD)
    with load(host, name, callers=6) as seen:
        until(lambda: seen.runs("1.0.0") > 60, what="runs of the stable version")
        options = ("--strategy", "canary", "--canary-steps", "10,50,100", "--canary-interval", "60s", "--no-wait")
        deploy(host, tmp_path, name, "1.1.0", code, *options, config="hosting: {start_timeout: 5s}\n")
        until(lambda: rollout(host, name)["phase"] == "failed", timeout=30, what="the rollback")
        before = seen.runs("1.0.0")
        until(lambda: seen.runs("1.0.0") > before + 20, timeout=60, what="runs of the stable version after the rollback")
    assert rollout(host, name)["problem"]["code"] in expected
    assert seen.statuses("1.0.0") == {200}
