"""Bad input, one by one: each gets a clear error with a stable code, and what worked before goes on working."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import Host, until, write_agent

GOOD = """
import os, sys, time

def agent(input):
    if isinstance(input, dict):
        block = "x" * 1023 + "\\n"
        for _ in range(input["flood_mib"] * 1024):
            sys.stdout.write(block)
        return "flooded"
    match input:
        case "raise":
            raise ValueError("no such thing")
        case "object":
            return object()
        case "exit":
            os._exit(3)
        case "sys.exit":
            sys.exit(4)
        case "memory":
            hoard = []
            while True:
                hoard.append(bytearray(8 * 1024 * 1024))
    return f"echo {input}"
"""


@pytest.fixture(scope="module")
def good(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_agent(tmp_path_factory.mktemp("good"), "good", GOOD, config="hosting:\n  memory: 256Mi\n")
    host.ok("ai", "agent", "deploy", "good", "--env", "development", cwd=folder)
    return folder


def deploy_fails(host: Host, folder: Path, code: str, exit_code: int, *arguments: str) -> dict[str, object]:
    """Deploying `folder` ends with `exit_code` and a problem of `code`, on standard output as JSON."""
    result = host.cli("ai", "agent", "deploy", folder.name, "--env", "development", "--json", *arguments, cwd=folder)
    assert result.code == exit_code, result.out + result.err
    problem = json.loads(result.out)
    problem = problem.get("error", problem)
    assert problem["code"] == code, problem
    assert problem.get("next_step"), problem
    return dict(problem)


BAD_AGENTS = {
    "raises-at-import": ("raise RuntimeError('broken on purpose')\n", "entrypoint.import_failed", "broken on purpose"),
    "syntax-error": ("def agent(:\n", "entrypoint.syntax_error", "SyntaxError"),
    "no-entrypoint": ("x = 1\n", "entrypoint.not_found", "agent"),
    "not-callable": ("agent = 42\n", "entrypoint.not_an_agent", "int"),
    "exits-at-import": ("raise SystemExit(3)\n", "entrypoint.import_failed", "SystemExit"),
    "hangs-at-import": ("import time\nprint('going to sleep')\nwhile True: time.sleep(1)\n", "start.timeout", ""),
}


@pytest.mark.parametrize("name", BAD_AGENTS)
def test_an_agent_that_does_not_start_says_why(host: Host, tmp_path: Path, name: str) -> None:
    code, expected, cause = BAD_AGENTS[name]
    folder = write_agent(tmp_path, name, code, config="hosting:\n  start_timeout: 3s\n")
    problem = deploy_fails(host, folder, expected, 8)
    assert problem["phase"] in ("import", "start")
    assert cause in json.dumps(problem)


def test_a_bad_version_never_takes_traffic(host: Host, good: Path, tmp_path: Path) -> None:
    worse = write_agent(tmp_path, "good", "raise RuntimeError('worse')\n", version="1.1.0")
    deploy_fails(host, worse, "entrypoint.import_failed", 8)
    assert host.run("good", "still here")[1]["output"] == "echo still here"


def test_requirements_that_do_not_resolve(host: Host, tmp_path: Path) -> None:
    folder = write_agent(tmp_path, "unresolvable", "agent = print\n", requirements="no-such-package-nexus-test==99.1\n")
    problem = deploy_fails(host, folder, "build.unresolvable", 8)
    assert problem["phase"] == "build"
    assert "no-such-package-nexus-test" in json.dumps(problem)


@pytest.mark.parametrize(
    ("line", "position", "words"),
    [
        ("hosting: [", "config.yaml:", "expected"),
        ("hostng: {}", "config.yaml:4:1", "hosting"),
        ("hosting:\n  memory: 5 apples", "config.yaml:5:", "512Mi"),
        ("hosting:\n  cpuu: 2", "config.yaml:5:3", "cpu"),
        ("hosting:\n  replicas: {min: 5, max: 2}", "config.yaml:5:", "above"),
    ],
)
def test_config_errors_have_a_position(host: Host, tmp_path: Path, line: str, position: str, words: str) -> None:
    folder = write_agent(tmp_path, "misconfigured", "def agent(input): return 1\n", config=line + "\n")
    result = host.cli("ai", "agent", "deploy", "misconfigured", "--env", "development", cwd=folder)
    assert result.code == 2
    assert position in result.err
    assert words in result.err


def test_replicas_outside_the_environment(host: Host, good: Path) -> None:
    result = host.cli("ai", "agent", "deploy", "good", "--env", "development", "--replicas", "4", "--json", cwd=good)
    assert result.code == 2
    assert "replicas.out_of_bounds" in result.out


def test_unknown_environment(host: Host, good: Path) -> None:
    result = host.cli("ai", "agent", "deploy", "good", "--env", "moon", "--json", cwd=good)
    assert result.code == 5
    assert "environment.unknown" in result.out


@pytest.mark.parametrize("name", ["a/b", "a b", "a.b", "x" * 300, "агент", "-a", "UPPER", "..", ""])
def test_impossible_names(host: Host, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"name: {json.dumps(name)}\n")
    (folder / "agent.py").write_text("def agent(input): return 1\n")
    result = host.cli("ai", "agent", "deploy", "--path", str(folder), "--env", "development")
    assert result.code == 2, result.err
    assert "Traceback" not in result.err


def test_the_same_version_with_other_content(host: Host, good: Path, tmp_path: Path) -> None:
    other = write_agent(tmp_path, "good", GOOD + "\n# changed\n", config="hosting:\n  memory: 256Mi\n")
    deploy_fails(host, other, "version.content_differs", 6)


def test_rollback_without_history(host: Host, tmp_path: Path) -> None:
    folder = write_agent(tmp_path, "only-once", "def agent(input): return input\n")
    host.ok("ai", "agent", "deploy", "only-once", "--env", "development", cwd=folder)
    result = host.cli("ai", "agent", "rollback", "only-once", "--json")
    assert result.code == 6
    assert "rollback.no_history" in result.out


def nested(depth: int) -> bytes:
    return b'{"input": ' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"not json", 400, "body.invalid_json"),
        (b"", 400, "body.invalid_json"),
        (b"[1, 2]", 400, "body.not_an_object"),
        (b'"text"', 400, "body.not_an_object"),
        (nested(100_000), 400, "body.too_deep"),
    ],
)
def test_bodies_that_are_no_run(host: Host, good: Path, body: bytes, status: int, code: str) -> None:
    answer = host.call("POST", "/agents/good/run", body)
    assert (answer[0], answer[1]["code"]) == (status, code)


def test_a_body_with_lone_surrogates_does_no_harm(host: Host, good: Path) -> None:
    status, _, _ = host.call("POST", "/agents/good/run", b'{"input": "\\ud800"}')
    assert status in (200, 400)
    assert host.run("good", "after")[1]["output"] == "echo after"


def test_a_body_of_200_megabytes_is_refused(host: Host, good: Path) -> None:
    try:
        answer = host.call("POST", "/agents/good/run", b'{"input": "' + b"x" * 200_000_000 + b'"}')
    except OSError:
        pass
    else:
        assert (answer[0], answer[1]["code"]) == (413, "body.too_large")
    assert host.run("good", "after")[1]["output"] == "echo after"


def test_an_agent_that_raises(host: Host, good: Path) -> None:
    status, problem = host.run("good", "raise")
    assert (status, problem["code"]) == (500, "agent.failed")
    assert "no such thing" in problem["cause"]


def test_an_answer_that_is_no_json(host: Host, good: Path) -> None:
    status, problem = host.run("good", "object")
    assert (status, problem["code"]) == (500, "agent.unserialisable")


@pytest.mark.parametrize("way", ["exit", "sys.exit"])
def test_an_agent_that_exits_comes_back(host: Host, good: Path, way: str) -> None:
    status, problem = host.run("good", way)
    assert (status, problem["code"]) == ((502, "session.exited") if way == "exit" else (500, "agent.failed"))
    assert ("3" if way == "exit" else "4") in problem["cause"]
    until(lambda: host.run("good", "after")[0] == 200, what="the agent")


def test_an_agent_that_exhausts_its_memory(host: Host, good: Path) -> None:
    status, problem = host.run("good", "memory")
    assert "memory" in problem["next_step"]
    until(lambda: host.run("good", "after")[0] == 200, what="the agent")
    if problem["code"] == "run.memory":  # without control groups the limit is the process's own, and Python says so itself
        assert status == 500
        return
    assert (status, problem["code"]) == (502, "instance.out_of_memory")
    assert "256Mi" in problem["cause"]
    listed = host.ok("ai", "agent", "sessions", "list", "good", "--json").json
    assert "instance.out_of_memory" in [(one.get("problem") or {}).get("code") for one in listed]


@pytest.mark.parametrize("mebibytes", [200, pytest.param(1024, marks=pytest.mark.slow)])
def test_a_gigabyte_of_prints_is_bounded(host: Host, good: Path, mebibytes: int) -> None:
    status, body, _ = host.call("POST", "/agents/good/run", {"input": {"flood_mib": mebibytes}}, timeout=100)
    assert (status, body["output"]) == (200, "flooded")
    size = sum(file.stat().st_size for file in (host.home / "logs").rglob("*") if file.is_file())
    assert size < 100_000_000


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1/x", "http://169.254.169.254/", "http://[::1]/", "ftp://example.com/", "http://0x7f.1/../", "nonsense"],
)
def test_webhook_urls_that_are_private_or_no_url(host: Host, good: Path, url: str) -> None:
    status, problem, _ = host.call("POST", "/agents/good/tasks", {"input": "x", "webhook": url})
    assert (status, problem["code"]) == (400, "webhook.url_refused")


def test_an_unreachable_webhook_does_not_hurt_the_task(host: Host, good: Path) -> None:
    _, task, _ = host.call("POST", "/agents/good/tasks", {"input": "x", "webhook": "http://127.0.0.1:9/nobody"})
    finished = until(
        lambda: (seen := host.call("GET", f"/tasks/{task['task_id']}")[1])["status"] == "completed" and seen, what="the task"
    )
    assert finished["output"] == "echo x"


def test_two_deploys_at_the_same_moment(host: Host, tmp_path: Path) -> None:
    folders = [
        write_agent(tmp_path / str(number), "twice", f"def agent(input): return {number}\n", version=f"1.0.{number}")
        for number in range(2)
    ]
    barrier = threading.Barrier(2)

    def deploy(folder: Path) -> int:
        barrier.wait()
        return host.cli("ai", "agent", "deploy", "twice", "--env", "development", "--json", cwd=folder).code

    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(deploy, folders))
    assert 0 in codes
    assert set(codes) <= {0, 6}
    status, body = host.run("twice", "x")
    assert status == 200
    assert body["output"] in (0, 1)


def test_no_key_a_wrong_key_and_a_forged_host(host: Host, good: Path) -> None:
    for key in ("", "nxk_wrong", "' OR 1=1--", "x" * 9000):
        status, _, headers = host.call("POST", "/agents/good/run", {"input": "x"}, key=key)
        assert status == 401
        assert "WWW-Authenticate" in headers
    status, _, _ = host.call("POST", "/agents/good/run", {"input": "x"}, headers={"Host": "evil.example"})
    assert status in (403, 421)
    status, _, _ = host.call("POST", "/agents/good/run", {"input": "x"}, headers={"Origin": "http://evil.example"})
    assert status == 403


def test_two_tenants_see_nothing_of_each_other(host: Host, good: Path) -> None:
    host.cli("tenants", "create", "rival")
    rival = host.ok("keys", "create", "--tenant", "rival", "--role", "developer", "--json").json["key"]
    assert host.call("POST", "/agents/good/run", {"input": "x"}, key=rival)[0] == 404
    assert host.call("GET", "/v1/agents/good", key=rival)[0] == 404
    assert host.call("GET", "/v1/agents", key=rival)[1] in ([], {"items": [], "next": None})
    _, task, _ = host.call("POST", "/agents/good/tasks", {"input": "x"})
    assert host.call("GET", f"/tasks/{task['task_id']}", key=rival)[0] == 404
    assert 'agent="good"' not in host.call("GET", "/metrics", key=rival)[1]
