"""Sessions go on on the version they began on while new ones take the new version: on a real host, through crashes and kills."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Host, start_host, until, write_agent

AGENT = """
    import os
    from nexus.ai.agents import Agent

    HELD = []

    class Mine(Agent):
        async def process(self, input):
            if input == "die":
                os._exit(3)
            HELD.append(input)
            self.state["n"] = self.state.get("n", 0) + 1
            return {"version": "VERSION", "n": self.state["n"], "held": len(HELD)}

    agent = Mine
"""
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sessions keep their version")]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = start_host(tmp_path_factory.mktemp("home"))
    try:
        yield running
    finally:
        running.cli("down", "--force", timeout=60)


def deploy(host: Host, folder: Path, name: str, version: str, *options: str, session: str = "", **hosting: str) -> Any:
    lines = [f"  {key}: {value}" for key, value in hosting.items()]
    config = "\n".join(["hosting:", *lines, f"  session: {{{session}}}", ""])
    project = write_agent(folder / version, name, AGENT.replace("VERSION", version), version=version, config=config)
    return host.ok("ai", "agent", "deploy", "--path", str(project), "--json", *options).json


def ask(host: Host, name: str, session: str, value: object = 1) -> Any:
    """What the session answers; that the gateway names the version that answered is asserted on the way."""
    status, body, headers = host.call(
        "POST", f"/agents/{name}/run", {"input": value}, headers={"Nexus-Session-Id": session}, timeout=60
    )
    assert status == 200, body
    assert headers["Nexus-Version"] == body["output"]["version"]
    return body["output"]


def instances(host: Host, name: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for one in host.ok("ai", "agent", "show", name, "--json").json["deployments"][0]["instances"]:
        found.setdefault(one["version"], []).append(one)
    return found


def test_a_session_stays_until_it_ends_and_then_its_old_version_goes(kept: Host, tmp_path: Path) -> None:
    name = "stays"
    deploy(kept, tmp_path, name, "1.0.0", "--replicas", "2", replicas="{max: 4}")
    for turn in (1, 2):
        assert ask(kept, name, "anna") == {"version": "1.0.0", "n": turn, "held": turn}
    deploy(kept, tmp_path, name, "2.0.0", replicas="{max: 4}")
    assert ask(kept, name, "anna") == {"version": "1.0.0", "n": 3, "held": 3}, "same version, same process"
    assert ask(kept, name, "ben")["version"] == "2.0.0"
    until(lambda: len(instances(kept, name)["1.0.0"]) == 1, what="the old instance without sessions to go")
    (old,) = instances(kept, name)["1.0.0"]
    assert (old["phase"], old["sessions"]) == ("draining", 1)
    assert "draining (1 session)" in kept.ok("ai", "agent", "show", name).out
    assert "1.0.0 is draining (1 session)" in kept.ok("ai", "agent", "rollout", "status", name).out
    listed = kept.ok("ai", "agent", "sessions", "list", name, "--json").json
    assert {one["session_id"]: one["version"] for one in listed} == {"anna": "1.0.0", "ben": "2.0.0"}
    kept.ok("ai", "agent", "sessions", "stop", name, "anna")
    until(lambda: "1.0.0" not in instances(kept, name), what="the old version to be gone")
    until(lambda: not Path(f"/proc/{old['pid']}").exists(), what="its process to be gone")
    assert ask(kept, name, "anna") == {"version": "1.0.0", "n": 4, "held": 1}, "woken for the session that began on it"
    assert ask(kept, name, "carl")["version"] == "2.0.0"
    kept.ok("ai", "agent", "sessions", "stop", name, "--version", "1.0.0")
    until(lambda: "1.0.0" not in instances(kept, name), what="the old version to be gone for good")
    assert ask(kept, name, "anna") == {"version": "2.0.0", "n": 5, "held": 1}, "its state went along"
    refused = kept.cli("ai", "agent", "sessions", "stop", name, "--version", "2.0.0", "--json")
    assert refused.json["error"]["code"] == "session.version_serves"


def test_a_rollback_leaves_sessions_where_they_are_too_and_a_fix_may_take_them_along(kept: Host, tmp_path: Path) -> None:
    name = "back"
    deploy(kept, tmp_path, name, "1.0.0")
    deploy(kept, tmp_path, name, "2.0.0")
    assert ask(kept, name, "dora")["version"] == "2.0.0"
    kept.ok("ai", "agent", "rollback", name)
    assert ask(kept, name, "dora") == {"version": "2.0.0", "n": 2, "held": 2}
    assert ask(kept, name, "emil")["version"] == "1.0.0"
    told = kept.ok("ai", "agent", "deploy", name, "--version", "1.0.0").out
    assert f"sessions that began on 2.0.0 go on there; to move them: nexus ai agent sessions stop {name}" in told
    deploy(kept, tmp_path, name, "3.0.0", "--sessions", "move")
    assert ask(kept, name, "dora") == {"version": "3.0.0", "n": 3, "held": 1}
    assert ask(kept, name, "emil") == {"version": "3.0.0", "n": 2, "held": 1}
    until(lambda: set(instances(kept, name)) == {"3.0.0"}, what="all older versions to be gone")


@pytest.mark.parametrize("isolation", ["session", "instance"])
def test_an_old_version_sleeps_while_its_sessions_are_idle(kept: Host, tmp_path: Path, isolation: str) -> None:
    name = f"idle-{isolation}"
    settings = {"isolation": isolation, "session": "stop_after: 3s"}
    deploy(kept, tmp_path, name, "1.0.0", **settings)
    assert ask(kept, name, "fred")["held"] == 1
    deploy(kept, tmp_path, name, "2.0.0", **settings)
    assert ask(kept, name, "fred") == {"version": "1.0.0", "n": 2, "held": 2}
    assert ask(kept, name, "gina")["version"] == "2.0.0"
    until(lambda: "1.0.0" not in instances(kept, name), what="the old version to be gone when it is idle")
    assert ask(kept, name, "fred") == {"version": "1.0.0", "n": 3, "held": 1}


def test_a_drained_version_survives_crashes_of_everything(kept: Host, tmp_path: Path) -> None:
    name = "crashes"
    deploy(kept, tmp_path, name, "1.0.0")
    assert ask(kept, name, "hugo")["n"] == 1
    deploy(kept, tmp_path, name, "2.0.0")
    status, _ = kept.run(name, "die", Nexus_Session_Id="hugo")
    assert status >= 500
    assert ask(kept, name, "hugo") == {"version": "1.0.0", "n": 2, "held": 1}
    for process in ("control", "supervisor", "gateway-0"):
        listed = {one["name"]: one["pid"] for one in kept.ok("status", "--json").json["processes"]}
        victim = next(pid for found, pid in listed.items() if found.startswith(process.split("-")[0]))
        os.kill(victim, signal.SIGKILL)
        found = until(lambda: _answer(kept, name, "hugo"), what=f"an answer after the {process} was killed")
        assert found["version"] == "1.0.0", process
    (zygote,) = [one["pid"] for one in until(lambda: instances(kept, name).get("1.0.0"), what="the old version")]
    os.kill(zygote, signal.SIGKILL)
    assert ask(kept, name, "hugo")["version"] == "1.0.0"
    assert ask(kept, name, "ida")["version"] == "2.0.0"


def _answer(host: Host, name: str, session: str) -> Any:
    try:
        status, body = host.run(name, 1, Nexus_Session_Id=session)
    except OSError:
        return None
    return body["output"] if status == 200 else None


@pytest.mark.parametrize("isolation", ["session", "instance"])
def test_under_load_no_request_fails_and_no_session_changes_its_version(kept: Host, tmp_path: Path, isolation: str) -> None:
    """Two rollouts, control killed in the middle of the first, while ten sessions talk without a pause."""
    name = f"busy-{isolation}"
    settings = {"isolation": isolation, "replicas": "{min: 2, max: 2}"}
    deploy(kept, tmp_path, name, "1.0.0", **settings)
    stop, seen, lock = threading.Event(), dict[str, Counter[tuple[int, str]]](), threading.Lock()

    def talk(session: str) -> None:
        mine = Counter[tuple[int, str]]()
        with lock:
            seen[session] = mine
        while not stop.is_set():
            status, _, headers = kept.call("POST", f"/agents/{name}/run", {"input": 1}, headers={"Nexus-Session-Id": session})
            mine[status, headers.get("Nexus-Version", "?")] += 1

    def start(prefix: str) -> list[threading.Thread]:
        threads = [threading.Thread(target=talk, args=(f"{prefix}-{number}",)) for number in range(5)]
        for thread in threads:
            thread.start()
        until(lambda: all(sum(seen.get(f"{prefix}-{number}", Counter()).values()) > 3 for number in range(5)), what="talking")
        return threads

    threads = start("first")
    try:
        deploy(kept, tmp_path, name, "2.0.0", "--no-wait", **settings)
        control = next(one["pid"] for one in kept.ok("status", "--json").json["processes"] if one["name"] == "control")
        os.kill(control, signal.SIGKILL)
        until(lambda: _phase(kept, name) == "active", what="the second version")
        threads += start("second")
        deploy(kept, tmp_path, name, "3.0.0", **settings)
        threads += start("third")
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    expected = {"first": "1.0.0", "second": "2.0.0", "third": "3.0.0"}
    assert {name: set(mine) for name, mine in seen.items()} == {
        f"{prefix}-{number}": {(200, version)} for prefix, version in expected.items() for number in range(5)
    }


def _phase(host: Host, name: str) -> str:
    shown = host.cli("ai", "agent", "show", name, "--json")
    return str(shown.json["deployments"][0]["phase"]) if shown.code == 0 else ""
