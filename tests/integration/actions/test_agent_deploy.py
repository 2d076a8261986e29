"""The GitHub Action: its definition, and its script run as a runner would, with a nexus command that records its arguments."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ruamel.yaml

ACTION = Path(__file__).parents[3] / "actions/agent-deploy"
HOSTILE = "x$(touch pwned)`touch pwned`;touch pwned;\"'\n::set-env name=A::b"


@pytest.fixture(scope="module")
def definition() -> Any:
    return ruamel.yaml.YAML(typ="safe", pure=True).load((ACTION / "action.yml").read_text())


def test_inputs_and_outputs_are_those_of_document_1(definition: Any) -> None:
    assert {"agent", "environment", "token"} <= definition["inputs"].keys()
    assert {name for name, given in definition["inputs"].items() if given.get("required")} == {"agent", "token"}
    for output in definition["outputs"].values():
        assert re.fullmatch(r"\$\{\{ steps\.deploy\.outputs\.\w+ \}\}", output["value"])


def test_no_input_is_written_into_a_script(definition: Any) -> None:
    assert definition["runs"]["using"] == "composite"
    for step in definition["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]
    used = set(re.findall(r"\$\{\{ inputs\.([\w-]+)", (ACTION / "action.yml").read_text()))
    assert used == set(definition["inputs"])


class Runner:
    """What a runner gives a step: a folder, files for outputs and summary, and a PATH with a `nexus` that records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "work").mkdir()
        self.answer(json.dumps({"id": "dep_1", "agent": "my-agent", "version": "1.0.0", "url": "https://h/agents/my-agent/run"}))

    def answer(self, text: str, code: int = 0) -> None:
        (self.folder / "answer").write_text(text)
        script = (
            f"import json, os, sys\nfrom pathlib import Path\nfolder = Path({str(self.folder)!r})\n"
            "names = ('NEXUS_URL', 'NEXUS_API_KEY')\n"
            "(folder / 'called').write_text(json.dumps([sys.argv[1:], {n: os.environ.get(n) for n in names}]))\n"
            f"sys.stdout.write((folder / 'answer').read_text())\nsys.exit({code})\n"
        )
        (self.folder / "nexus.py").write_text(script)
        launch = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(self.folder / "nexus.py"))} "$@"\n'
        (self.folder / "bin/nexus").write_text(launch)  # a #! line cannot name an interpreter whose path has a space
        (self.folder / "bin/nexus").chmod(0o755)

    def run(self, **inputs: str) -> subprocess.CompletedProcess[str]:
        given = {
            "INPUT_AGENT": "my-agent", "INPUT_ENVIRONMENT": "production", "INPUT_URL": "https://h", "NEXUS_API_KEY": "nxk_token",
        } | inputs  # fmt: skip
        env = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "ACTION_PATH": str(ACTION),
            "GITHUB_OUTPUT": str(self.folder / "output"),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
            "PYTHONDONTWRITEBYTECODE": "1",
            **given,
        }
        return subprocess.run(
            ["bash", str(ACTION / "deploy.sh")], env=env, cwd=self.folder / "work", capture_output=True, text=True, check=False
        )

    def called(self) -> Any:
        return json.loads((self.folder / "called").read_text())

    def text(self, name: str) -> str:
        file = self.folder / name
        return file.read_text() if file.exists() else ""


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    folder = tmp_path / "a runner"
    folder.mkdir()
    return Runner(folder)


def test_it_runs_the_command_of_document_1(runner: Runner) -> None:
    done = runner.run()
    assert done.returncode == 0, done.stderr
    arguments, env = runner.called()
    assert arguments == ["ai", "agent", "deploy", "--env", "production", "--json", "--", "my-agent"]
    assert env == {"NEXUS_URL": "https://h", "NEXUS_API_KEY": "nxk_token"}
    assert runner.text("output").splitlines() == [
        "url=https://h/agents/my-agent/run", "version=1.0.0", "deployment=dep_1",
    ]  # fmt: skip
    assert "### Deployed" in runner.text("summary")
    assert "nxk_token" not in done.stdout + done.stderr + runner.text("output") + runner.text("summary")


def test_every_input_reaches_its_option(runner: Runner) -> None:
    runner.run(INPUT_PATH="my folder", INPUT_VERSION="1.2", INPUT_REPLICAS="3", INPUT_CPU="1", INPUT_MEMORY="1Gi")
    arguments, _ = runner.called()
    for option, value in (
        ("--path", "my folder"),
        ("--version", "1.2"),
        ("--replicas", "3"),
        ("--cpu", "1"),
        ("--memory", "1Gi"),
    ):
        assert arguments[arguments.index(option) + 1] == value


def test_hostile_inputs_stay_arguments(runner: Runner) -> None:
    names = ("INPUT_AGENT", "INPUT_ENVIRONMENT", "INPUT_PATH", "INPUT_VERSION", "INPUT_REPLICAS", "INPUT_CPU", "INPUT_MEMORY")
    assert runner.run(**dict.fromkeys(names, HOSTILE)).returncode == 0
    arguments, _ = runner.called()
    assert arguments.count(HOSTILE) == len(names)
    assert list((runner.folder / "work").iterdir()) == []
    assert runner.run(INPUT_AGENT="--help").returncode == 0
    assert runner.called()[0][-2:] == ["--", "--help"]


def test_a_failure_keeps_its_exit_code_and_is_annotated(runner: Runner) -> None:
    mistakes = [
        {"file": "config.yaml", "line": 3, "column": 3, "path": "hosting.memroy", "message": "unknown key", "nearest": "memory"}
    ]
    error = {
        "detail": "config is wrong",
        "code": "config.invalid",
        "next_step": "correct it",
        "errors": mistakes,
        "log_tail": ["a"],
    }
    runner.answer(json.dumps({"error": error}), code=2)
    done = runner.run()
    assert done.returncode == 2
    assert "::error file=config.yaml,line=3,col=3::hosting.memroy: unknown key" in done.stdout.splitlines()
    assert "::error title=Nexus::config is wrong correct it" in done.stdout.splitlines()
    assert runner.text("output") == ""
    assert "### Deployment failed" in runner.text("summary")


def test_a_server_cannot_issue_workflow_commands(runner: Runner) -> None:
    evil = "x\n::add-mask::y\r::set-output name=z::1\u2028::stop-commands::q"
    error = {"detail": evil, "cause": evil, "log_tail": [evil]}
    runner.answer(json.dumps({"error": error}), code=8)
    done = runner.run()
    assert done.returncode == 8
    assert all(line.startswith(("::error title=Nexus::", "  log: ")) for line in done.stdout.splitlines())
    runner.answer(json.dumps({"id": evil, "url": evil, "version": "1 | <b>", "agent": evil}))
    runner.run()
    assert len(runner.text("output").splitlines()) == 3
    assert "<b>" not in runner.text("summary")


@pytest.mark.parametrize("answer", ["", "not json", "[1]"])
def test_no_answer_is_told(runner: Runner, answer: str) -> None:
    runner.answer(answer, code=1)
    done = runner.run()
    assert done.returncode == 1
    assert "the nexus command gave no answer" in done.stdout


@pytest.mark.parametrize(("missing", "code"), [({"INPUT_URL": ""}, 2), ({"NEXUS_API_KEY": ""}, 3)])
def test_what_is_missing_is_said(runner: Runner, missing: dict[str, str], code: int) -> None:
    done = runner.run(**missing)
    assert done.returncode == code
    assert "::error" in done.stdout
    assert not (runner.folder / "called").exists()


def test_a_version_that_is_none_is_not_installed(tmp_path: Path) -> None:
    env = {
        "PATH": os.environ["PATH"],
        "ACTION_PATH": str(ACTION),
        "CLI_VERSION": "1.0 --index-url http://evil",
        "GITHUB_PATH": "/dev/null",
    }
    done = subprocess.run(
        ["bash", str(ACTION / "install.sh")], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
