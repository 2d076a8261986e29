"""Money end to end: a provider and a budget set by command line and `config.yaml`, an agent that spends, a webhook that hears of
it, a run that knows what it cost, and the switch that ends it."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks

from nexus.kit import home as homes
from tests.e2e.conftest import Host, free_port, start_host, until, write_agent

CODE = """
from nexus.ai.agents import Agent

class Spender(Agent):
    async def process(self, input):
        if input == "stream":
            return "".join([piece async for piece in self.llm.stream("tell me everything", model="slow/fake-model")])
        if input == "wrapped":
            try:
                while True:
                    await self.llm.generate("hello there", model="priced", max_tokens=16)
            except Exception as error:
                raise RuntimeError(f"the framework says: {error}") from None
        replies = [await self.llm.generate("hello there", model="priced", max_tokens=16) for _ in range(int(input))]
        return len(replies)

agent = Spender()
"""
CONFIG = """
hosting:
  budget:
    cost_per_day: 20.0
    run: {requests: 3}
    user: {requests_per_day: 5}
"""


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A webhook receiver: its URL and what it got."""
    got: list[tuple[dict[str, str], bytes]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", got
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture(scope="module")
def money(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with two gateways, a fast provider `fake` and a slow one, and the agent `spender`."""
    folder = tmp_path_factory.mktemp("money")
    ports, children = (free_port(), free_port()), []
    for port, more in zip(ports, ([], ["--tokens", "4000", "--piece", "0.02"]), strict=True):
        command = [sys.executable, "-m", "nexus.cli.main", "dev", "fake-llm", "--port", str(port), *more]
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    (folder / "home").mkdir()
    (folder / "home" / "models.yaml").write_text(
        f"""
providers:
  slow: {{base_url: "http://127.0.0.1:{ports[1]}/v1", key: "env:SLOW_KEY", models: {{fake-model: {{price: {{output: 1}}}}}}}}
routes:
  priced: {{to: [fake/fake-model], fallback: [slow/fake-model]}}
"""
    )
    try:
        given = {"NEXUS_EGRESS_ALLOW": "127.0.0.1/32", "NEXUS_GATEWAYS": "2", "SLOW_KEY": "sk-slow"}
        running = start_host(folder / "home", **given)
        try:
            provider = ("models", "provider", "set", "fake", "--base-url", f"http://127.0.0.1:{ports[0]}/v1", "--key", "-")
            running.ok(*provider, stdin="sk-fake\n")
            running.ok("models", "price", "set", "fake", "*", "--input", "1000", "--output", "10000")
            write_agent(folder, "spender", CODE, config=CONFIG)
            running.ok("ai", "agent", "deploy", "spender", "--env", "development", cwd=folder / "spender")
            yield running
        finally:
            running.cli("down", timeout=60)
    finally:
        for child in children:
            child.terminate()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


def test_a_run_knows_what_it_cost_and_so_does_history(money: Host) -> None:
    status, answer = money.run("spender", "2", Nexus_User_Id="ann", Nexus_Session_Id="s-1")
    assert (status, answer["output"]) == (200, 2)
    cost = answer["metadata"]["cost"]
    assert cost == pytest.approx((answer["metadata"]["input_tokens"] * 1000 + answer["metadata"]["output_tokens"] * 10_000) / 1e6)
    run = answer["metadata"]["run_id"]
    shown = until(lambda: (found := money.call("GET", f"/v1/runs/{run}"))[0] == 200 and found[1]["cost"] and found[1])
    assert shown["cost"] == pytest.approx(cost)
    by_user = json.loads(money.ok("models", "usage", "--by", "user", "--since", "1h", "--json").out)
    assert {"ann"} <= {row["group"] for row in by_user["rows"]}
    by_session = json.loads(money.ok("models", "usage", "--by", "session", "--since", "1h", "--run", run, "--json").out)
    assert [(row["group"], row["calls"]) for row in by_session["rows"]] == [("s-1", 2)]
    assert 'agent_cost_usd_total{agent="spender",environment="development"' in money.call("GET", "/metrics")[1]


def test_what_config_yaml_allows_is_all_an_agent_gets(money: Host) -> None:
    listed = {one["id"]: one for one in json.loads(money.ok("models", "budget", "list", "--json").out)}
    assert listed["config.spender.development.agent.cost.day"]["limit"] == 20.0
    status, answer = money.run("spender", "4", Nexus_User_Id="bob")
    assert (status, answer["kind"], answer["code"]) == (402, "exhausted", "budget.exhausted")
    assert "config.spender.development.run.requests.total" in answer["cause"]
    status, answer = money.run("spender", "wrapped", Nexus_User_Id="kim")
    assert (status, answer["code"]) == (402, "budget.exhausted"), "whatever the agent makes of it"
    assert "the framework says" in answer["cause"]
    status, answer = money.run("spender", "3", Nexus_User_Id="bob")
    assert (status, answer["code"]) == (402, "budget.exhausted")
    assert "user bob" in answer["cause"]
    assert (answer := money.run("spender", "1", Nexus_User_Id="eve"))[0] == 200, answer


def test_a_budget_warns_by_signed_webhook(money: Host, told: tuple[str, list[Any]]) -> None:
    url, got = told
    money.ok("models", "budget", "set", "probe", "--requests", "1000000", "--json")
    until(lambda: spent(money, "probe") >= model_calls(money), what="the count of what was spent")
    used = spent(money, "probe")
    money.ok("models", "budget", "set", "watched", "--requests", str((used + 1) * 2), "--per", "day", "--webhook", url)
    assert (answer := money.run("spender", "1", Nexus_User_Id="cat"))[0] == 200, answer
    secret = money.call("GET", "/v1/webhooks/secret")[1]["secret"]
    until(lambda: got, what="the webhook")
    message = standardwebhooks.Webhook(secret).verify(got[0][1], got[0][0])
    assert message["type"] == "budget.warning"
    told_of = {name: message["data"][name] for name in ("budget", "percent", "unit", "limit")}
    assert told_of == {"budget": "watched", "percent": 50, "unit": "requests", "limit": (used + 1) * 2}
    notice = until(lambda: money.call("GET", "/v1/model-budgets/watched")[1]["notices"][0])
    assert notice["percent"] == 50
    money.ok("models", "budget", "remove", "watched")
    money.ok("models", "budget", "remove", "probe")


def model_calls(money: Host) -> int:
    """How many calls the gateways have sent to providers, all of them together."""
    total = 0
    for door in homes.Home(money.home).doors.glob("door-*.sock"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(door))
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda client=client: client.recv(65536), b""))
        total += json.loads(answer.partition(b"\r\n\r\n")[2])["model_calls"]
    return total


def spent(money: Host, budget: str) -> int:
    """What control has heard of so far, a moment behind the gateways."""
    return int(money.call("GET", f"/v1/model-budgets/{budget}")[1]["used"])


def test_the_switch_ends_a_run_under_way_within_a_second(money: Host) -> None:
    ended: list[Any] = []
    before = model_calls(money)
    thread = threading.Thread(target=lambda: ended.append(money.run("spender", "stream", Nexus_User_Id="dan")))
    thread.start()
    until(lambda: model_calls(money) > before, what="the model call")
    money.ok("models", "stop", "--agent", "spender", "--reason", "it does not end")
    thread.join(10)
    ((status, answer),) = ended
    assert status >= 400
    assert "stopped" in json.dumps(answer)
    status, answer = money.run("spender", "1", Nexus_User_Id="fay")
    assert (status, answer["code"]) == (403, "model.stopped")
    assert "it does not end" in answer["cause"]
    money.ok("models", "resume", "--agent", "spender")
    until(lambda: money.run("spender", "1", Nexus_User_Id="gus")[0] == 200)


@pytest.mark.slow
def test_budgets_hold_while_control_is_away_and_after_a_restart(money: Host) -> None:
    money.ok("models", "budget", "set", "few", "--requests", "1", "--per", "total", "--scope", "session", "--agent", "spender")
    assert money.run("spender", "1", Nexus_User_Id="hal", Nexus_Session_Id="kept")[0] == 200
    money.cli("down", timeout=60)
    money.ok("up", "-d", timeout=60)
    until(lambda: money.run("spender", "0")[0] == 200)
    status, answer = money.run("spender", "1", Nexus_User_Id="ivy", Nexus_Session_Id="kept")
    assert (status, answer["code"]) == (402, "budget.exhausted")
    money.ok("models", "budget", "remove", "few")


def test_a_wrong_models_file_is_told_and_what_it_said_before_holds(money: Host) -> None:
    path: Path = money.home / "models.yaml"
    text = path.read_text()
    path.write_text(text + "\nbudgets: {x: {limit: -1, colour: red}}\n")
    problems = until(lambda: json.loads(money.ok("models", "list", "--json").out)["problems"])
    assert "budgets.x.limit" in problems[0]["cause"]
    assert "colour" in problems[0]["cause"]
    assert (answer := money.run("spender", "1", Nexus_User_Id="jim"))[0] == 200, answer
    path.write_text(text + "\nbudgets: {x: {limit: 3}}\n")
    until(lambda: "x" in {one["id"] for one in json.loads(money.ok("models", "budget", "list", "--json").out)})
    assert money.cli("models", "budget", "remove", "x").code != 0
    path.write_text(text)


def test_keys_of_providers_are_nowhere_to_be_read(money: Host) -> None:
    for path in ("/v1/model-settings", "/v1/models", "/v1/status"):
        assert "sk-fake" not in json.dumps(money.call("GET", path)[1])
    for file in [*money.home.glob("*.json"), *(money.home / "logs").glob("*.log"), *(money.home / "spend").glob("*")]:
        assert b"sk-fake" not in file.read_bytes(), file
