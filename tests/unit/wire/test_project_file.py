"""The project file: what it means, and where exactly each mistake is reported."""

import json
from pathlib import Path

import pytest

from nexus.core import errors
from nexus.wire import project_file

REPOSITORY = Path(__file__).parents[3]
DOCUMENT_1 = """\
name: my-agent
version: 1.0.0

hosting:
  cpu: 500m
  memory: 512Mi
  replicas:
    min: 1
    max: 10
  autoscaling:
    enabled: true
    target_cpu: 70
    target_memory: 80
  health:
    path: /health
    interval: 10s
    timeout: 5s
  env:
    LOG_LEVEL: info
  secrets:
    - EXTERNAL_API_KEY
"""
DOCUMENT_1_SCALING = """\
name: my-agent
autoscaling:
  enabled: true
  min_replicas: 2
  max_replicas: 20
  metrics:
    - type: cpu
      target: 70
    - type: memory
      target: 80
    - type: custom
      name: queue_depth
      target: 10
"""
DOCUMENT_5 = """\
name: my-agent
runtime:
  mode: native
  resources:
    memory: 2GB
    cpu: 2
  health_check:
    interval: 30s
    timeout: 10s
    retries: 3
  scaling:
    auto_scale: true
    min_replicas: 2
    max_replicas: 10
    cpu_threshold: 80
"""


def test_document_1s_file_means_what_it_says() -> None:
    config = project_file.parse_project(DOCUMENT_1)
    hosting = config.hosting
    assert (config.name, config.version) == ("my-agent", "1.0.0")
    assert (hosting.cpu, hosting.memory) == (500, 512 * 1024 * 1024)
    assert config.replica_bounds == (1, 10)
    assert config.scaling is not None
    assert (config.scaling.target("cpu"), config.scaling.target("memory"), config.scaling.target("queue_depth")) == (70, 80, None)
    assert (hosting.health.path, hosting.health.interval, hosting.health.timeout) == ("/health", 10.0, 5.0)
    assert (hosting.env, hosting.secrets) == ({"LOG_LEVEL": "info"}, ["EXTERNAL_API_KEY"])


@pytest.mark.parametrize("under_hosting", [False, True])
def test_the_other_form_of_autoscaling_is_the_same_setting(under_hosting: bool) -> None:
    text = DOCUMENT_1_SCALING
    if under_hosting:
        head, *rest = text.splitlines()
        text = "\n".join([head, "hosting:", *("  " + line for line in rest)])
    config = project_file.parse_project(text)
    assert config.replica_bounds == (2, 20)
    assert config.scaling is not None
    assert [config.scaling.target(name) for name in ("cpu", "memory", "queue_depth")] == [70, 80, 10]


def test_document_5s_runtime_section_is_folded_into_hosting() -> None:
    config = project_file.parse_project(DOCUMENT_5)
    hosting = config.hosting
    assert (hosting.cpu, hosting.memory) == (2000, 2_000_000_000)
    assert (hosting.health.interval, hosting.health.timeout, hosting.health.retries) == (30.0, 10.0, 3)
    assert config.replica_bounds == (2, 10)
    assert config.scaling is not None
    assert config.scaling.enabled
    assert config.scaling.target("cpu") == 80


def test_text_that_looks_like_a_number_stays_as_written() -> None:
    config = project_file.parse_project(
        "name: 7\nversion: 1.10\nhosting:\n  python: 3.10\n  env:\n    A: 1.10\n    B: on\n    C: true\n    D: 0x1F\n    E: ''\n"
    )
    assert (config.name, config.version, config.hosting.python) == ("7", "1.10", "3.10")
    assert config.hosting.env == {"A": "1.10", "B": "on", "C": "true", "D": "0x1F", "E": ""}


def test_a_section_left_empty_is_absent() -> None:
    config = project_file.parse_project("name: a\nversion:\nhosting:\n  cpu:\n  env:\n  autoscaling:\n")
    assert config.hosting.cpu is None
    assert config.hosting.env == {}
    assert config.version is None


MISTAKES = [
    ("", "1:1", "", "the file is empty"),
    ("- a", "1:1", "", "expected keys with values"),
    ("hosting:\n  cpu: 1\n", "1:1", "name", "is required"),
    ("version: 1\nname:\n", "2:1", "name", "is required"),
    ("name: a\nname: b", "2:1", "name", "twice; the first is on line 1"),
    ("name: a\nhosting:\n  env:\n    A: 1\n    A: 2\n", "5:5", "hosting.env.A", "twice"),
    ("name: a\nhostng:\n", "2:1", "hostng", "did you mean hosting?"),
    ("name: a\nhosting:\n  memroy: 1Gi\n", "3:3", "hosting.memroy", "did you mean memory?"),
    ("name: a\ncpu: 500m\n", "2:1", "cpu", "did you mean hosting.cpu?"),
    ("name: a\nzzzzzz: 1\n", "2:1", "zzzzzz", "expected one of name, version"),
    ("name: a/b", "1:7", "name", "not a valid agent name"),
    ("name: 'два'", "1:7", "name", "not a valid agent name"),
    ("name: " + "a" * 300, "1:7", "name", "not a valid agent name"),
    ("name: a\nversion: a b", "2:10", "version", "expected text of the form"),
    ("name: a\nentrypoint: a b", "2:13", "entrypoint", "expected text of the form"),
    ("name: a\nhosting:\n  cpu: 512Mi", "3:8", "hosting.cpu", "not an amount of CPU such as 500m or 2"),
    ("name: a\nhosting:\n  cpu: true", "3:8", "hosting.cpu", "not an amount of CPU"),
    ("name: a\nhosting:\n  cpu: [1]", "3:8", "hosting.cpu", "not an amount of CPU"),
    ("name: a\nhosting:\n  cpu: 0", "3:8", "hosting.cpu", "expected more than 0"),
    ("name: a\nhosting:\n  cpu: .nan", "3:8", "hosting.cpu", "not an amount of CPU"),
    ("name: a\nhosting:\n  memory: 500m", "3:11", "hosting.memory", "not an amount of memory such as 512Mi or 2GB"),
    ("name: a\nhosting:\n  memory: " + "9" * 400, "3:11", "hosting.memory", "not an amount of memory"),
    ("name: a\nhosting:\n  timeout: .inf", "3:12", "hosting.timeout", "expected"),
    ("name: a\nhosting:\n  timeout: 5 parsecs", "3:12", "hosting.timeout", "not a length of time such as 30s"),
    ("name: a\nhosting:\n  replicas:\n    min: 5\n    max: 2", "4:10", "hosting.replicas.min", "min (5) is above max (2)"),
    ("name: a\nhosting:\n  replicas:\n    min: two", "4:10", "hosting.replicas.min", "expected a whole number"),
    ("name: a\nhosting:\n  replicas: 3", "3:13", "hosting.replicas", "expected a section with keys"),
    ("name: a\nautoscaling:\n  target_cpu: 170", "3:15", "autoscaling.target_cpu", "expected at most 100"),
    ("name: a\nautoscaling:\n  enabled: maybe", "3:12", "autoscaling.enabled", "expected true or false"),
    (
        "name: a\nautoscaling:\n  metrics:\n    - type: cpu\n      target: 170",
        "5:15",
        "autoscaling.metrics.0.target",
        "a percentage, 1 to 100",
    ),
    (
        "name: a\nautoscaling:\n  metrics:\n    - {type: gpu, target: 1}",
        "4:14",
        "autoscaling.metrics.0.type",
        "did you mean cpu?",
    ),
    ("name: a\nautoscaling: {}\nhosting: {autoscaling: {}}", "2:1", "autoscaling", "keep one of them"),
    (
        "name: a\nhosting:\n  replicas: {min: 1}\n  autoscaling: {min_replicas: 2}",
        "3:19",
        "hosting.replicas.min",
        "autoscaling.min_replicas says 2",
    ),
    ("name: a\nhosting:\n  env:\n    A: [1]", "4:8", "hosting.env.A", "expected text"),
    ("name: a\nhosting:\n  env:\n    A-B: x", "4:10", "hosting.env.A-B", "not a variable name"),
    ("name: a\nhosting:\n  env:\n    NEXUS_HOME: x", "4:17", "hosting.env.NEXUS_HOME", "reserved"),
    ("name: a\nhosting:\n  secrets: [X, 9A]", "3:16", "hosting.secrets.1", "not a variable name"),
    ("name: a\nhosting:\n  env: {X: 1}\n  secrets: [X]", "4:13", "hosting.secrets.0", "under env as well"),
    ("name: a\nhosting:\n  isolation: instanc", "3:14", "hosting.isolation", "did you mean instance?"),
    ("name: a\nruntime:\n  mode: container", "3:9", "runtime.mode", "supported modes are process and native"),
    ("name: a\nruntime:\n  resources:\n    gpu: 1", "4:10", "runtime.resources.gpu", "supported resources are cpu and memory"),
    (
        "name: a\nhosting: {cpu: 1}\nruntime: {resources: {cpu: 2}}",
        "3:28",
        "runtime.resources.cpu",
        "another value under hosting",
    ),
    ("a: [1\nb: 2", "2:2", "", "syntax error: expected ',' or ']'"),
    ("name: a: b", "1:8", "", "syntax error"),
    ("name: a\n\thosting: 1", "2:1", "", "syntax error"),
    ("name: &x a", "1:7", "name", "anchors and aliases"),
    ("name: *x", "1:7", "name", "anchors and aliases"),
    ("name: !!python/object:os.system x", "1:7", "name", "tags such as !!python/object:os.system"),
    ("name: a\x00", "1:8", "", "U+0000 is not allowed"),
    ("name: a\nversion: \ud800", "2:10", "", "U+D800 is not allowed"),
    ("name: a\n---\nname: b", "2:1", "", "one YAML document"),
    ("? [a]\n: b", "1:3", "", "a key must be a plain name"),
    ("[" * 100_000, "1:33", "", "nested deeper than 32 levels"),
    ("x: {" * 50, "1:128", "", "nested deeper than 32 levels"),
    ("#" * 300_000, "1:1", "", "larger than 256 KiB"),
]


@pytest.mark.parametrize(
    ("text", "position", "path", "message"), MISTAKES, ids=[f"{at}-{row[2]}" for at, row in enumerate(MISTAKES)]
)
def test_a_mistake_is_reported_where_it_is(text: str, position: str, path: str, message: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        project_file.parse_project(text)
    error = caught.value
    assert error.code == "config.invalid"
    first = error.extra["errors"][0]  # type: ignore[index]
    assert f"{first['line']}:{first['column']}" == position
    assert first["path"] == path
    assert message in first["message"]
    start = f"config.yaml:{position}: " + (f"{path}: " if path else "")
    assert error.message.splitlines()[0].startswith(start)


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file() -> None:
    with pytest.raises(errors.Invalid) as caught:
        project_file.parse_project("nam: a\nhosting:\n  cpu: 1x\n  memory: 1x\n  healht: {}\n", "sub/config.yaml")
    lines = caught.value.message.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "sub/config.yaml:1:1",
        "sub/config.yaml:1:1",
        "sub/config.yaml:3:8",
        "sub/config.yaml:4:11",
        "sub/config.yaml:5:3",
    ]
    assert {one["nearest"] for one in caught.value.extra["errors"]} == {"name", "health", None}  # type: ignore[attr-defined]


def test_a_file_full_of_mistakes_is_reported_in_bounds() -> None:
    text = "name: a\n" + "".join(f"key{number}: 1\n" for number in range(2000))
    with pytest.raises(errors.Invalid) as caught:
        project_file.parse_project(text)
    assert caught.value.message.endswith("and 1950 more")


def test_the_published_schema_is_current() -> None:
    committed = (REPOSITORY / "docs/reference/config.schema.json").read_text()
    assert json.loads(committed) == project_file.json_schema(), (
        "run: .venv/bin/nexus ai agent schema > docs/reference/config.schema.json"
    )
