"""What the command line makes of values: cleaned text, sizes, ages, times, levels, metrics, exit codes, versions in a file."""

from pathlib import Path

import pytest

from nexus.cli import exits, screen
from nexus.cli.agent import dev_loop, logs, metrics, project, rollout, templates
from nexus.core import errors
from nexus.wire import project_file


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\rb", "a\\rb"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202ereversed", "\\u202ereversed"),
        ("\ud800", "\\ud800"),
        ("[bold]x[/bold]", "[bold]x[/bold]"),
        (3, "3"),
    ],
)
def test_text_from_elsewhere_is_shown_and_not_obeyed(given: object, shown: str) -> None:
    assert screen.clean(given) == shown


@pytest.mark.parametrize(
    ("value", "text"), [(0, "-"), (None, "-"), (512, "512 B"), (1536, "1.5 KiB"), (48 * 2**20, "48 MiB"), (5 * 2**40, "5.0 TiB")]
)
def test_sizes(value: object, text: str) -> None:
    assert screen.size(value) == text


@pytest.mark.parametrize(("at", "text"), [(None, "-"), (990, "10 s"), (400, "10 m"), (1000 + 5, "0 s"), (1000 - 7200, "2 h")])
def test_ages(at: object, text: str) -> None:
    assert screen.ago(at, now=1000) == text


def test_every_kind_of_error_has_a_code_of_its_own() -> None:
    assert exits.CODES.keys() == errors.KINDS.keys()
    assert len(set(exits.CODES.values())) == len(exits.CODES)
    assert exits.code_of(errors.NexusError("x")) == 1


@pytest.mark.parametrize(
    ("given", "at"), [("1h", 6400), ("10m", 9400), ("2d", -162800), ("30", 9970), ("1970-01-01T01:00:00+00:00", 3600)]
)
def test_since(given: str, at: float) -> None:
    assert logs.parse_since(given, 10_000) == at


@pytest.mark.parametrize("given", ["yesterday", "", "1 parsec", "9" * 400 + "h", "nan", "99999-01-01"])
def test_since_that_is_no_time(given: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        logs.parse_since(given, 10_000)
    assert caught.value.code == "since.invalid"


def test_metrics_with_every_kind_of_line() -> None:
    text = (
        "# TYPE a counter\n"
        'agent_x_total{agent="a",path="C:\\\\n \\"q\\""} 1e3 1700000000\n'
        "agent_up 1\nprocess_cpu 5\nbroken{\n"
        'agent_l_sum{agent="a"} 6\nagent_l_count{agent="a"} 3\nagent_l_bucket{agent="a",le="+Inf"} 3\nagent_nan NaN\n'
    )
    samples = metrics.parse(text)
    assert samples[0].labels == {"agent": "a", "path": 'C:\\n "q"'}
    assert samples[0].value == 1000
    chosen = {one.name: one.value for one in metrics.select(samples, "a", every=False)}
    assert chosen == {"agent_x_total": 1000, "agent_l (mean)": 2}
    assert len(metrics.select(samples, None, every=True)) == 6


@pytest.mark.parametrize("template", templates.TEMPLATES)
def test_templates_are_valid_projects(template: str) -> None:
    files = templates.TEMPLATES[template]("some-name")
    config = project_file.parse_project(files["config.yaml"])
    assert config.name == "some-name"
    module, attribute = str(config.entrypoint).split(":")
    assert f"\n{attribute}" in files[f"{module}.py"] or f"def {attribute}" in files[f"{module}.py"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nversion: 1.0.0 # old\nx: 1\n", 'name: a\nversion: "2.10"\nx: 1\n'),
        ("# top\nname: a\nhosting: {}\n", '# top\nname: a\nversion: "2.10"\nhosting: {}\n'),
    ],
)
def test_setting_the_version_keeps_the_rest_of_the_file(text: str, expected: str) -> None:
    text, expected = text.replace("x: 1\n", "description: d\n"), expected.replace("x: 1\n", "description: d\n")
    found = project.Project(folder=Path(), config=project_file.parse_project(text), text=text)
    assert project.with_version(found, "2.10").text == expected


def test_a_version_that_cannot_be_set_is_refused() -> None:
    text = "{name: a}\n"
    found = project.Project(folder=Path(), config=project_file.parse_project(text), text=text)
    with pytest.raises(errors.Invalid):
        project.with_version(found, "2.0")


def test_what_changed_between_two_looks(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text("1")
    (tmp_path / ".nexus").mkdir()
    before = dev_loop.snapshot(tmp_path)
    (tmp_path / ".nexus/status.json").write_text("{}")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/agent.pyc").write_text("")
    assert dev_loop.changed(before, dev_loop.snapshot(tmp_path)) == []
    (tmp_path / "agent.py").write_text("22")
    (tmp_path / "new.py").write_text("")
    assert dev_loop.changed(before, dev_loop.snapshot(tmp_path)) == ["agent.py", "new.py"]
    (tmp_path / "agent.py").unlink()
    assert dev_loop.changed(before, dev_loop.snapshot(tmp_path)) == ["agent.py", "new.py"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"message": "x", "level": "info"}\n', "x"),
        (b"plain\n", "plain"),
        (b"[1]\n", "[1]"),
        (b"\xff\n", "\ufffd"),
        (b"{}\n", "{}"),
    ],
)
def test_lines_of_the_worker(raw: bytes, message: str) -> None:
    assert dev_loop.parse_line(raw)["message"] == message


def test_progress_says_each_phase_once_where_there_is_no_terminal() -> None:
    console = screen.to_user()
    with console.capture() as captured:
        progress = rollout.Progress(console, clock=lambda: 0.0)
        for name, detail in (("building", "12 packages"), ("building", "12 packages"), ("building", "done"), ("starting", "")):
            progress.step(name, detail)
        progress.end(ok=True)
    assert captured.get().splitlines() == ["building: 12 packages", "building: done", "starting"]
