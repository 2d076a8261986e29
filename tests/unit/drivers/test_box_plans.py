"""What is decided about a box, before any of it is made."""

import dataclasses
from pathlib import Path

import pytest

from nexus.core import errors, instances
from nexus.drivers.process import problems, sandbox
from nexus.hosting import sizing
from nexus.wire import project_file

WHOLE = sandbox.Layers(held=frozenset(sandbox.LAYERS))
WISH = sandbox.Wish(
    stage=Path("/h/i/root"),
    folder=Path("/h/src"),
    home=Path("/h/i/work"),
    output=Path("/h/i/out"),
    read=[Path("/h/src")],
    write=[Path("/h/i/work")],
)
SPEC = instances.InstanceSpec(
    id="ins_1", tenant="acme", agent="echo", environment="development", deployment_id="dep_1", version_id="ver_1",
    version="1", package_digest="0" * 64, entrypoint="agent", token="", door="/h/run/doors/door-0.sock",
)  # fmt: skip


def plan(wish: sandbox.Wish = WISH, layers: sandbox.Layers = WHOLE, owner: int | None = 70_000) -> dict[str, object]:
    return sandbox.plan(
        wish, instance_id="ins_abcdef", layers=layers, owner=owner, command=["/bin/true"], environ={"A": "b"}, limits={}
    )


def test_every_instance_is_a_user_of_its_own_that_nobody_else_is() -> None:
    everything = "         0          0 4294967295"
    users = {sandbox.plan_owner(f"ins_{number}", everything) for number in range(1000)}
    assert len(users) == 1000
    assert all(0x70000000 <= user < 0x78000000 for user in users)
    assert sandbox.plan_owner("ins_1", everything) == sandbox.plan_owner("ins_1", everything)


@pytest.mark.parametrize(
    ("uid_map", "least", "most"),
    [("0 100000 65536", 20_000, 65_000), ("0 1000 1", 65_534, 65_535), ("", 65_534, 65_535)],
)
def test_in_a_container_the_user_is_one_that_the_container_maps(uid_map: str, least: int, most: int) -> None:
    assert least <= sandbox.plan_owner("ins_1", uid_map) < most


def test_a_home_in_memory_is_bound_from_nowhere_where_there_is_a_file_tree_for_it() -> None:
    wish = dataclasses.replace(WISH, home_bytes=1 << 20)
    boxed, bare = plan(wish), plan(wish, sandbox.Layers())
    assert (boxed["home_bytes"], boxed["write"]) == (1 << 20, ["/h/i/out"])
    assert (bare["home_bytes"], bare["write"]) == (None, ["/h/i/work", "/h/i/out"])
    assert "/h/i/work" in boxed["landlock_write"]  # type: ignore[operator]


def test_nothing_is_bound_twice_and_nothing_that_every_box_has() -> None:
    given = ["/a/b", "/a", "/a", "/usr", "/usr/local/python", "/ab"]
    assert sandbox.outermost(given) == ["/a", "/ab"]


def test_an_interpreter_is_followed_through_every_link(tmp_path: Path) -> None:
    real = tmp_path / "python" / "bin" / "python3.11"
    alias = tmp_path / "python" / "bin" / "python"
    outer = tmp_path / "other" / "bin" / "python"
    inner = tmp_path / "env" / "bin" / "python"
    for path in (real, outer, inner):
        path.parent.mkdir(parents=True)
    real.touch()
    (tmp_path / "env" / "pyvenv.cfg").touch()
    alias.symlink_to("python3.11")
    outer.symlink_to("../../python/bin/python")
    inner.symlink_to(outer)
    needed, links = sandbox.interpreter(inner, private=Path("/private"))
    assert needed == [tmp_path / "python"]
    assert sandbox.interpreter(real, private=Path("/private")) == ([tmp_path / "python"], [])
    assert links == [(str(outer), "../../python/bin/python"), (str(alias), "python3.11")]


def test_an_interpreter_in_a_home_does_not_show_the_home(tmp_path: Path) -> None:
    for name in ("bin/python3.11", "lib/libpython3.11.so", "lib/python3.11/os.py", ".nexus/master.key", ".ssh/id"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    needed, _ = sandbox.interpreter(tmp_path / "bin/python3.11", private=tmp_path / ".nexus/instances/ins_1")
    assert {str(path.relative_to(tmp_path)) for path in needed} == {"bin/python3.11", "lib/python3.11", "lib/libpython3.11.so"}


def test_a_kernel_before_scopes_is_told_and_matters_only_to_the_hosts_network() -> None:
    assert sandbox.refused_scopes(6) == {}
    old = sandbox.Layers(held=frozenset(sandbox.LAYERS), refused=sandbox.refused_scopes(4))
    stranger = dataclasses.replace(WISH, untrusted=True)
    problems.check_isolation(SPEC, dataclasses.replace(stranger, network="egress"), old, missing=old.missing)
    with pytest.raises(errors.Unavailable, match="untrusted"):
        problems.check_isolation(SPEC, stranger, old, missing=old.missing)


def test_a_plan_of_a_whole_box_gives_away_only_what_is_the_instances_own() -> None:
    drawn = plan()
    assert drawn["write"] == ["/h/i/work", "/h/i/out"]
    assert (drawn["owner"], drawn["inner"]) == (70_000, sandbox.INNER_USER)
    assert drawn["landlock_read"] == ["/"]
    assert "/" not in drawn["landlock_write"]
    assert drawn["restricted"] is True
    assert drawn["layers"] == sorted(sandbox.LAYERS)


def test_without_namespaces_landlock_keeps_the_hosts_files() -> None:
    drawn = plan(layers=sandbox.Layers(held=frozenset({"landlock", "seccomp"})))
    assert drawn["owner"] is None
    assert "/" not in drawn["landlock_read"]
    assert "/h/src" in drawn["landlock_read"]
    assert "/tmp" not in drawn["landlock_write"]


def test_a_baseline_box_keeps_its_namespaces() -> None:
    drawn = plan(dataclasses.replace(WISH, context=sandbox.BASELINE))
    assert drawn["restricted"] is False
    assert {"namespaces", "seccomp", "user"} <= set(drawn["layers"])  # type: ignore[call-overload]


@pytest.mark.parametrize(("memory", "expected"), [(None, 1024), (512, 256), (16, 16), (1 << 20, 1024)])
def test_temporary_files_take_at_most_half_of_the_memory(memory: int | None, expected: int) -> None:
    drawn = plan(dataclasses.replace(WISH, memory_bytes=memory * 1024**2 if memory else None))
    assert drawn["tmp_bytes"] == expected * 1024**2


def test_what_a_machine_lacks_is_told_with_its_cost_and_refused_to_strangers() -> None:
    weak = sandbox.Layers(held=frozenset({"namespaces", "network", "user", "seccomp"}), refused={"landlock": "not built in"})
    assert len(weak.missing) == 1
    assert "not built in" in weak.missing[0]
    problems.check_isolation(SPEC, WISH, weak, missing=weak.missing)
    problems.check_isolation(SPEC, dataclasses.replace(WISH, untrusted=True), WHOLE, missing=())
    with pytest.raises(errors.Unavailable) as caught:
        problems.check_isolation(SPEC, dataclasses.replace(WISH, untrusted=True), weak, missing=weak.missing)
    assert caught.value.code == "isolation.layer_missing"
    assert "not built in" in (caught.value.cause or "")
    shared = sandbox.Layers(held=frozenset({"namespaces"}), refused={"network": "refused"})
    with pytest.raises(errors.Unavailable):
        problems.check_isolation(SPEC, dataclasses.replace(WISH, network="isolated"), shared, missing=())
    with pytest.raises(errors.Unavailable, match="untrusted"):
        problems.check_isolation(SPEC, dataclasses.replace(WISH, untrusted=True), WHOLE, missing=["memory control group: none"])


def test_the_config_says_only_what_differs_from_everybodys_box() -> None:
    def isolation(text: str) -> dict[str, object]:
        return sizing.plan_isolation(project_file.parse_project(f"name: a\nhosting:\n{text}").hosting, {})

    assert isolation("  cpu: 1") == {}
    assert isolation("  network: isolated\n  read_only_root: false\n  untrusted: true\n  security_context: baseline") == {
        "network": "isolated",
        "read_only_root": False,
        "untrusted": True,
        "security_context": "baseline",
    }


def test_what_a_caller_asks_for_stands_above_the_config_and_is_judged_with_it() -> None:
    def isolation(text: str, **asked: object) -> dict[str, object]:
        config = project_file.parse_project("name: a\nhosting:\n  " + text).hosting
        return sizing.plan_isolation(config, asked)

    way = "network: egress\n  egress: [a.example]\n  network_limit: 8Mbps"
    assert isolation(way) == {"network": "egress", "egress": ["a.example"], "network_limit": 1_000_000}
    assert isolation(way, network_limit="80Mbps")["network_limit"] == 10_000_000
    assert isolation(way, network="isolated") == {"network": "isolated"}
    assert isolation(way, network="host") == {}
    limited = {"network": "egress", "egress": ["*"], "network_limit": 12_500_000}
    assert isolation("network_limit: 100Mbps") == limited
    assert isolation("cpu: 1", network_limit="100Mbps") == limited
    assert isolation("disk: 1Gi", processes=64, read_only_root=False) == {
        "disk": 1 << 30,
        "processes": 64,
        "read_only_root": False,
    }
    for asked in ({"network": "bridge"}, {"network": "isolated", "network_limit": "1Mbps"}, {"processes": "many"}):
        with pytest.raises(errors.Invalid) as caught:
            isolation("cpu: 1", **asked)
        assert caught.value.code == "options.invalid"


@pytest.mark.parametrize(
    "line",
    [
        "egress: [a.example]",
        "network: egress\n  egress: ['a:70000']",
        "network: egress\n  egress: ['a b']",
        "network: isolated\n  network_limit: 10Mbps",
        "network_limit: fast",
        "disk: 1",
        "processes: 1",
        "security_context: none",
        "network: bridge",
        "untrusted: maybe",
    ],
)
def test_a_setting_that_would_not_be_kept_is_an_error(line: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        project_file.parse_project(f"name: a\nhosting:\n  {line}\n")
    assert line.rpartition("\n")[2].strip().split(":", 1)[0] in str(caught.value) + str(caught.value.extra)
