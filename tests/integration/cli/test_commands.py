"""The command line as a subprocess against a host on a real socket: what is printed where, and the exit codes."""

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.speaking_host import KEY, SpeakingHost, speaking_host

from nexus.cli import main
from nexus.core import errors
from nexus.wire import archive


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(slots=True)
class Shell:
    """A folder and an environment to type commands in."""

    folder: Path
    env: dict[str, str]
    host: SpeakingHost

    def nexus(self, *arguments: str, stdin: str = "", **env: str) -> Result:
        """One command line, run in this process with the streams, folder and environment of a process of its own."""
        out, err, given = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(3))
        given.buffer.write(stdin.encode())
        given.buffer.seek(0)
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("NEXUS_")]:
                patch.delenv(name)
            for name, value in {**self.env, **env}.items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            for name, stream in (("stdout", out), ("stderr", err), ("stdin", given)):
                patch.setattr(sys, name, stream)
            code = main.run(arguments)
        printed = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
        assert "Traceback" not in printed[1]
        return Result(code, *printed)

    def process(self, *arguments: str, **env: str) -> Result:
        """The same in a process of its own, for what only a process shows."""
        done = subprocess.run(
            [sys.executable, "-m", "nexus.cli.main", *arguments],
            cwd=self.folder,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def agent(self, *arguments: str, stdin: str = "", **env: str) -> Result:
        return self.nexus("ai", "agent", *arguments, stdin=stdin, **env)

    def project(self, name: str = "my-agent", config: str | None = None) -> Path:
        folder = self.folder / name
        folder.mkdir()
        (folder / "config.yaml").write_text(config or f"name: {name}\nversion: 1.0.0 # first\nentrypoint: agent:agent\n")
        (folder / "agent.py").write_text("def agent(input): return input\n")
        return folder


@pytest.fixture(scope="module")
def running() -> Iterator[SpeakingHost]:
    with speaking_host() as host:
        yield host


@pytest.fixture
def shell(running: SpeakingHost, tmp_path: Path) -> Shell:
    running.reset()
    env = {name: value for name, value in os.environ.items() if not name.startswith("NEXUS_")}
    env |= {"NEXUS_URL": running.url, "NEXUS_API_KEY": KEY, "NEXUS_HOME": str(tmp_path / "home"), "NO_COLOR": "1"}
    work = tmp_path / "work"
    work.mkdir()
    return Shell(work, env, running)


@pytest.fixture
def known(shell: Shell) -> Shell:
    """A shell whose host has `my-agent`."""
    shell.host.agents["my-agent"] = {"name": "my-agent", "tenant": "default", "created_at": 1.0, "deployments": []}
    return shell


def test_deploy_prints_phases_url_and_a_curl_to_paste(shell: Shell) -> None:
    shell.project()
    result = shell.agent("deploy", "my-agent", "--env", "production", "--replicas", "3", "--cpu", "1000m", "--memory", "1Gi")
    assert result.code == 0
    phases = [line.split(":")[0] for line in result.err.splitlines()]
    assert phases == ["packing", "uploading", "deploying", "building environment", "starting", "serving"]
    assert "building environment: 12 packages" in result.err
    assert f"{shell.host.url}/agents/my-agent/run" in result.out
    assert re.search(r"^curl -X POST http", result.out, re.MULTILINE)
    assert KEY not in result.out + result.err
    sent = shell.host.last("/v1/deployments").json
    assert (sent["environment"], sent["replicas"], sent["cpu"], sent["memory"]) == ("production", 3, "1000m", "1Gi")


def test_deploy_as_json_prints_one_document(shell: Shell) -> None:
    shell.project()
    result = shell.agent("deploy", "my-agent", "--json")
    assert (result.code, result.json["phase"], result.json["environment"]) == (0, "active", "development")
    assert "Nexus-Environment: development" in result.json["curl"]


@pytest.mark.parametrize("way", ["here", "named", "path", "dotted", "file"])
def test_the_project_is_found_from_what_was_typed(shell: Shell, way: str) -> None:
    folder = shell.project()
    if way in ("here", "file"):
        shell.folder = folder
    arguments = {
        "here": (),
        "named": ("my-agent",),
        "path": ("--path", "my-agent"),
        "dotted": ("./my-agent",),
        "file": ("--path", "config.yaml"),
    }[way]
    assert shell.agent("deploy", *arguments).code == 0
    assert list(shell.host.agents) == ["my-agent"]


def test_deploy_refuses_a_folder_of_another_agent(shell: Shell) -> None:
    shell.project()
    result = shell.agent("deploy", "other", "--path", "my-agent", "--json")
    assert (result.code, result.json["error"]["code"]) == (2, "project.other_agent")
    assert shell.host.requests == []


def test_deploy_without_a_folder_takes_the_newest_version_of_the_host(shell: Shell) -> None:
    folder = shell.project()
    assert shell.agent("deploy", "my-agent", "--env", "staging").code == 0
    for file in folder.iterdir():
        file.unlink()
    assert shell.agent("deploy", "my-agent", "--env", "production").code == 0
    assert {entry["environment"] for entry in shell.host.agents["my-agent"]["deployments"]} == {"staging", "production"}
    assert shell.agent("deploy", "my-agent", "--version", "9.9", "--json").json["error"]["code"] == "version.not_found"
    assert shell.agent("deploy", "nobody", "--json").json["error"]["code"] == "agent.not_found"


def test_deploy_under_a_version_leaves_the_folder_alone(shell: Shell) -> None:
    folder = shell.project()
    before = (folder / "config.yaml").read_text()
    assert shell.agent("deploy", "my-agent", "--version", "2.10").code == 0
    (version,) = shell.host.versions.values()
    assert version["version"] == "2.10"
    packed = archive.read_file(shell.host.packages[version["id"]], "config.yaml")
    assert packed == b'name: my-agent\nversion: "2.10"\nentrypoint: agent:agent\n'
    assert (folder / "config.yaml").read_text() == before
    assert shell.agent("deploy", "my-agent", "--version", "2\nname: evil").code == 2


def test_a_failed_rollout_says_phase_cause_last_lines_and_next_command(shell: Shell) -> None:
    shell.project()
    shell.host.rollout_problem = errors.AgentFailed(
        "my-agent does not start", code="import.failed", phase="import", cause="RuntimeError: x", log_tail=["line 1", "line 2"]
    )
    result = shell.agent("deploy", "my-agent")
    assert result.code == 8
    for expected in ("my-agent does not start", "import", "RuntimeError: x", "line 2", "nexus ai agent logs my-agent"):
        assert expected in result.err
    assert result.out == ""
    problem = shell.agent("deploy", "my-agent", "--json")
    assert problem.code == 8
    assert problem.json["error"]["next_step"] == "nexus ai agent logs my-agent"


def test_a_broken_connection_does_not_end_the_watching(shell: Shell) -> None:
    shell.project()
    shell.host.break_after = [1, 1]
    assert shell.agent("deploy", "my-agent").code == 0


def test_the_same_version_with_other_content_is_a_conflict(shell: Shell) -> None:
    folder = shell.project()
    assert shell.agent("deploy", "my-agent").code == 0
    (folder / "agent.py").write_text("changed = 1\n")
    result = shell.agent("deploy", "my-agent", "--json")
    assert (result.code, result.json["error"]["code"]) == (6, "version.content_differs")


def test_a_mistake_in_the_config_is_shown_before_anything_is_sent(shell: Shell) -> None:
    shell.project(config="name: my-agent\nhosting:\n  memroy: 1Gi\n  cpu: lots\n")
    for arguments in (("deploy", "my-agent"), ("validate", "my-agent")):
        result = shell.agent(*arguments)
        assert result.code == 2
        assert "config.yaml:3:3: hosting.memroy: unknown key 'memroy'; did you mean memory?" in result.err
        assert "config.yaml:4:8: hosting.cpu: 'lots' is not an amount of CPU" in result.err
    assert shell.host.requests == []
    listed = shell.agent("validate", "my-agent", "--json").json["error"]["errors"]
    assert [(one["line"], one["column"]) for one in listed] == [(3, 3), (4, 8)]


@pytest.mark.parametrize("name", ["a b", "a.b", "x" * 300, "агент", "UPPER", ""])
def test_impossible_names(shell: Shell, name: str) -> None:
    assert shell.agent("deploy", name).code == 2
    assert shell.agent("run", name, "x").code == 2
    assert shell.agent("init", name).code == 2
    assert shell.host.requests == []
    assert list(shell.folder.iterdir()) == []


@pytest.mark.parametrize("template", ["plain", "langgraph", "empty"])
def test_init_makes_a_project_that_is_valid_and_deploys(shell: Shell, template: str) -> None:
    assert shell.agent("init", "fresh", "--template", template).code == 0
    config = (shell.folder / "fresh/config.yaml").read_text()
    assert config.startswith("# yaml-language-server: $schema=.nexus/config.schema.json\n")
    assert json.loads((shell.folder / "fresh/.nexus/config.schema.json").read_text())["title"]
    compile((shell.folder / "fresh/agent.py").read_text(), "agent.py", "exec")
    assert (shell.folder / "fresh/requirements.txt").exists() == (template == "langgraph")
    assert shell.agent("validate", "fresh").code == 0
    assert shell.agent("deploy", "fresh").code == 0
    (package,) = shell.host.packages.values()
    assert not any(file.startswith(".nexus") for file in archive.list_files(package))


def test_init_touches_no_folder_with_something_in_it(shell: Shell) -> None:
    (shell.folder / "mine").mkdir()
    (shell.folder / "mine/notes.txt").write_text("keep")
    assert shell.agent("init", "mine", "--json").json["error"]["code"] == "project.exists"
    assert [path.name for path in (shell.folder / "mine").iterdir()] == ["notes.txt"]
    assert shell.agent("init", "x", "--template", "langraph").err.splitlines()[0].endswith("did you mean langgraph?")


def test_run_prints_the_answer_alone_on_standard_output(known: Shell) -> None:
    result = known.agent("run", "my-agent", "hello", "--session", "s1", "--env", "staging", "-c", "user_id=123")
    assert (result.code, result.out) == (0, "echo hello\n")
    assert "12 tokens" in result.err
    sent = known.host.last("/agents/my-agent/run")
    assert sent.json == {"input": "hello", "context": {"user_id": "123"}}
    assert (sent.headers["nexus-session-id"], sent.headers["nexus-environment"]) == ("s1", "staging")
    told = known.agent("run", "my-agent", "hello", "--json").json
    assert (told["output"], told["metadata"]["tokens_used"], told["run_id"]) == ("echo hello", 12, "run_1")


def test_the_input_comes_from_argument_stdin_file_or_json(known: Shell) -> None:
    (known.folder / "input.txt").write_text("from a file")
    assert known.agent("run", "my-agent", "-", stdin="piped").out == "echo piped\n"
    assert known.agent("run", "my-agent", "--file", "input.txt").out == "echo from a file\n"
    assert known.agent("run", "my-agent", "--data", '{"a": 1}').out == "echo {'a': 1}\n"
    assert known.agent("run", "my-agent", "--", "--json").out == "echo --json\n"
    for arguments, code in (
        ((), "input.missing"),
        (("x", "--file", "input.txt"), "input.ambiguous"),
        (("--data", "{"), "input.invalid_json"),
        (("x", "-c", "novalue"), "context.invalid"),
        (("--file", "absent.txt"), "system.refused"),
    ):
        result = known.agent("run", "my-agent", *arguments, "--json")
        assert (result.code, result.json["error"]["code"]) == (2, code)


def test_stream_prints_text_or_one_event_a_line(known: Shell) -> None:
    assert known.agent("stream", "my-agent", "one two").out == "one two \n"
    assert known.agent("stream", "my-agent", "at once").out == "at once \n"
    lines = [json.loads(line) for line in known.agent("stream", "my-agent", "one two", "--json").out.splitlines()]
    assert [line["event"] for line in lines] == ["run.started", "message.delta", "message.delta", "run.completed"]


def test_chat_keeps_one_session(known: Shell) -> None:
    result = known.agent("chat", "my-agent", stdin="hello there\n\nfail\nagain\n/quit\nnever\n")
    assert (result.code, result.out) == (0, "hello there \nagain \n")
    assert "ValueError: no" in result.err
    sessions = {request.headers["nexus-session-id"] for request in known.host.requests}
    assert len(sessions) == 1
    assert len(known.host.requests) == 3


def test_tasks_from_submission_to_the_end(known: Shell) -> None:
    result = known.agent("submit", "my-agent", "report", "--webhook", "https://example.com/x", "--idempotency-key", "k1")
    assert (result.code, result.out) == (0, "task_abc123 pending\n")
    sent = known.host.last("/agents/my-agent/tasks")
    assert (sent.json["webhook"], sent.headers["idempotency-key"]) == ("https://example.com/x", "k1")
    assert known.agent("task", "status", "task_abc123", "--json").json["progress"] == 45
    assert known.agent("task", "wait", "task_abc123").out == "report\n"
    assert "50 % half" in known.agent("task", "events", "task_abc123").out
    assert known.agent("task", "list", "--json").json[0]["task_id"] == "task_abc123"
    assert known.agent("task", "cancel", "task_abc123").out == "task_abc123 cancelled\n"
    assert known.agent("task", "wait", "task_abc123").code == 8
    assert known.agent("task", "status", "task_none").code == 5


def test_a_failed_task_is_an_error_with_its_cause(known: Shell) -> None:
    result = known.agent("submit", "my-agent", "fail", "--wait")
    assert result.code == 8
    assert "ValueError: no" in result.err


def test_logs_are_filtered_and_harmless(known: Shell) -> None:
    result = known.agent("logs", "my-agent", "--level", "warn", "--since", "1h", "--run", "run_1", "--session", "s1", "-n", "5")
    query = known.host.last("/v1/agents/my-agent/logs").query
    assert (query["level"], query["run"], query["session"], query["limit"]) == ("warning", "run_1", "s1", "5")
    assert float(query["since"]) > 1_700_000_000
    assert result.code == 0
    result = known.agent("logs", "my-agent")
    assert "\x1b" not in result.out
    assert "\x07" not in result.out
    assert "\\x1b]0;evil\\x07bad [bold]news[/bold]" in result.out
    lines = [json.loads(line) for line in known.agent("logs", "my-agent", "--json").out.splitlines()]
    assert [line["message"] for line in lines] == ["hello", "\x1b]0;evil\x07bad [bold]news[/bold]"]
    for arguments, code in ((("--since", "yesterday"), "since.invalid"), (("--level", "loud"), "level.invalid")):
        assert known.agent("logs", "my-agent", *arguments, "--json").json["error"]["code"] == code


def test_an_error_of_the_agent_cannot_steer_the_terminal(known: Shell) -> None:
    result = known.agent("run", "my-agent", "fail")
    assert result.code == 8
    assert "\x1b" not in result.err
    assert "\\x1b[31mb" in result.err


def test_secrets_go_in_and_never_out(known: Shell) -> None:
    for value, stdin in (("from-argument", ""), (None, "from-stdin\n"), (None, "two\nlines\n")):
        result = known.agent("secret", "set", "my-agent", "API_KEY", *([value] if value else []), stdin=stdin)
        assert result.code == 0
        stored = known.host.secrets["my-agent"]["API_KEY"]
        assert stored == (value or stdin.removesuffix("\n"))
        assert stored not in result.out + result.err
    assert "API_KEY" in known.agent("secret", "list", "my-agent").out
    assert known.agent("secret", "set", "my-agent", "EMPTY", stdin="").code == 2
    assert known.agent("secret", "delete", "my-agent", "API_KEY").code == 0
    assert known.agent("secret", "delete", "my-agent", "API_KEY").code == 5


def test_changing_what_is_deployed(shell: Shell) -> None:
    shell.project()
    shell.agent("deploy", "my-agent", "--env", "production")
    assert shell.agent("scale", "my-agent", "--replicas", "5", "--json").json["replicas"] == 5
    assert shell.host.last("/v1/agents/my-agent/scale").json == {"replicas": 5}
    assert shell.agent("scale", "my-agent", "--autoscale", "on", "--json").json["autoscale"]["enabled"] is True
    assert shell.agent("scale", "my-agent", "--autoscale", "off").code == 0
    assert shell.agent("scale", "my-agent", "--autoscale", "maybe").code == 2
    assert shell.agent("scale", "my-agent").code == 2
    assert shell.agent("rollback", "my-agent", "--version", "1.0.0").code == 0
    assert shell.host.last("/v1/agents/my-agent/rollback").json == {"version": "1.0.0"}
    assert shell.agent("scale", "my-agent", "--replicas", "2", "--wait").code == 0
    history = shell.agent("history", "my-agent").out
    assert {entry["environment"] for entry in shell.agent("history", "my-agent", "--json").json} == {"production"}
    assert "1.2.3" in history
    assert "1.0.0" in history
    assert "production" in shell.agent("list").out
    assert "ins_1" in shell.agent("show", "my-agent").out
    assert shell.agent("delete", "my-agent", "--yes").code == 0
    assert shell.agent("show", "my-agent").code == 5


def test_metrics_of_one_agent_as_a_table(known: Shell) -> None:
    rows = known.agent("metrics", "my-agent", "--json").json
    assert {row["name"]: row["value"] for row in rows} == {
        "agent_requests_total": 3.0,
        "agent_latency_seconds (mean)": 0.5,
        "agent_tokens_total": 40.0,
    }
    assert "environment=production" in known.agent("metrics", "my-agent").out


def test_keys_and_tenants(known: Shell) -> None:
    result = known.nexus(
        "keys", "create", "ci", "--role", "runner", "--role", "viewer", "--expires", "30d", "--agent", "a", "--json"
    )
    assert result.json["key"] == "nxk_fresh"
    sent = known.host.last("/v1/keys").json
    assert sent == {"name": "ci", "roles": ["runner", "viewer"], "expires_in_s": 2592000.0, "agents": ["a"]}
    assert known.nexus("keys", "create").out == "nxk_fresh\n"
    assert known.nexus("keys", "create", "--expires", "soon").code == 2
    assert "key_1" in known.nexus("keys", "list").out
    assert known.nexus("keys", "revoke", "key_1").code == 0
    assert known.nexus("tenants", "create", "rival").code == 0
    assert known.nexus("tenants", "create", "a/b").code == 2
    assert "default" in known.nexus("tenants", "list").out


def test_login_keeps_the_key_for_its_owner_alone(known: Shell, tmp_path: Path) -> None:
    url = known.host.url
    without = {"NEXUS_URL": "", "NEXUS_API_KEY": ""}
    assert known.nexus("login", url, "--key", "nxk_wrong", **without).code == 3
    assert not (tmp_path / "home/credentials.json").exists()
    result = known.nexus("login", url, stdin=KEY + "\n", **without)
    assert result.code == 0
    assert KEY not in result.out + result.err
    assert stat.S_IMODE((tmp_path / "home/credentials.json").stat().st_mode) == 0o600
    assert known.nexus("whoami", "--json", **without).json["source"] == "nexus login"
    assert known.nexus("logout").code == 0
    assert not (tmp_path / "home/credentials.json").exists()


CODES = [
    (("deploy",), {}, 2, "project.not_found"),
    (("run", "my-agent", "x"), {"NEXUS_API_KEY": "nxk_wrong"}, 3, "auth.required"),
    (("run", "absent", "x"), {}, 5, "agent.not_found"),
    (("run", "my-agent", "busy"), {}, 7, "limit.rate"),
    (("run", "my-agent", "fail"), {}, 8, "agent.failed"),
    (("run", "my-agent", "x"), {"NEXUS_URL": "http://127.0.0.1:9"}, 9, "host.unreachable"),
    (("run", "my-agent", "x"), {"NEXUS_URL": "ftp://x"}, 2, "url.invalid"),
    (("run", "my-agent", "proxy"), {}, 9, "service.unavailable"),
]


@pytest.mark.parametrize(("arguments", "env", "code", "error"), CODES, ids=[row[3] for row in CODES])
def test_the_exit_code_says_the_kind_of_error(
    known: Shell, arguments: tuple[str, ...], env: dict[str, str], code: int, error: str
) -> None:
    result = known.agent(*arguments, "--json", **env)
    assert (result.code, result.json["error"]["code"]) == (code, error)
    shown = known.agent(*arguments, **env)
    assert (shown.code, shown.out) == (code, "")
    assert shown.err.startswith("error: ")
    assert f"({error})" in shown.err


@pytest.mark.parametrize("arguments", [("--bogus",), ("nonsense",), ("ai", "agent", "deploy", "--replicas", "many")])
def test_a_wrong_command_line_is_2(shell: Shell, arguments: tuple[str, ...]) -> None:
    result = shell.nexus(*arguments)
    assert (result.code, result.out) == (2, "")
    told = shell.nexus(*arguments, "--json")
    assert (told.code, told.json["error"]["code"]) == (2, "usage.invalid")


def test_a_process_ends_with_the_code_and_shows_a_traceback_only_on_demand(known: Shell) -> None:
    plain = known.process("ai", "agent", "run", "absent", "x")
    debug = known.process("ai", "agent", "run", "absent", "x", NEXUS_DEBUG="1")
    assert (plain.code, debug.code) == (5, 5)
    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err


def test_a_reader_that_leaves_early_makes_no_noise(known: Shell) -> None:
    command = f'"{sys.executable}" -m nexus.cli.main ai agent logs my-agent --json | true'
    done = subprocess.run(["bash", "-c", command], env=known.env, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")


def test_an_interrupt_is_130(known: Shell) -> None:
    command = [sys.executable, "-m", "nexus.cli.main", "ai", "agent", "stream", "my-agent", "endless", "--json"]
    with subprocess.Popen(command, env=known.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "run.started" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert known.host.stream_left.wait(10)


def test_help_of_every_command_renders(shell: Shell) -> None:
    from nexus.cli.agent import group

    for arguments in (
        ("--help",),
        ("-h",),
        ("ai", "agent", "--help"),
        *(("ai", "agent", name, "--help") for name in group.AgentGroup.table),
    ):
        result = shell.nexus(*arguments)
        assert result.code == 0, arguments
        assert "Usage" in result.out


def test_help_imports_nothing_heavy(shell: Shell) -> None:
    code = (
        "import sys; from nexus.cli import main\n"
        "code = main.run(['--help'])\n"
        "heavy = {'pydantic', 'httpx2', 'fastapi', 'ruamel', 'asyncio', 'sqlalchemy', 'nexus.client'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=shell.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
