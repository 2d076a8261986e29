"""The gVisor tier: the same driver, worker and sockets, under another kernel; refused in plain words where it is not.

Sessions and the way out there: `test_box_gvisor_sessions`.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import supervisor_rig

from nexus.apps import doctor_kernel
from nexus.core import instances
from nexus.core.phases import InstancePhase
from nexus.drivers.process import oci_bundle, sandbox
from nexus.testing.driver_contract import is_in, until, until_gone

READY, FAILED = InstancePhase.READY, InstancePhase.FAILED
GVISOR = {"runtime_class": "gvisor", "network": "isolated"}
AGENT = """
import os, socket
def run(input):
    if input == "die":
        os._exit(3)
    if input == "write":
        open(os.environ["HOME"] + "/kept", "w").write("kept")
    return {"release": os.uname().release, "key": os.environ.get("API_KEY"), "home": sorted(os.listdir(os.environ["HOME"]))}
"""
needs_runsc = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("runsc") is None, reason="needs root and runsc")


async def start(rig: supervisor_rig.SupervisorRig, options: dict[str, object], **changes: Any) -> instances.InstanceStatus:
    spec = rig.spec_of({"agent.py": AGENT}, options=options, **changes)
    await rig.driver.start(spec)
    return await until(rig, spec.id, is_in(READY, FAILED))


@needs_runsc
async def test_an_agent_lives_and_dies_under_another_kernel() -> None:
    async with supervisor_rig.started(plain=False) as rig:
        status = await start(rig, GVISOR, secrets={"API_KEY": "canary-of-the-agent"}, memory_bytes=512 << 20)
        assert status.phase is READY, dict(status.problem or {})
        said = await rig.run(status.id, "write")
        assert said["release"] != os.uname().release
        assert said["key"] == "canary-of-the-agent"
        for path in rig.home.root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert b"canary-of-the-agent" not in path.read_bytes(), path
        with pytest.raises(ConnectionError):
            await rig.run(status.id, "die")
        await until(rig, status.id, lambda status: status.restarts == 1 and status.phase is READY)
        assert "kept" in (await rig.run(status.id, None))["home"]
        rig.kill()
        await rig.up()
        after = await until(rig, status.id, is_in(READY))
        assert after.restarts == 1  # the new supervisor found it running
        assert (await rig.run(status.id, None))["release"] == said["release"]
        await rig.driver.stop(status.id, grace_s=1)
        await until_gone(rig, status.id)
        assert not (rig.home.instances / status.id).exists()
        assert [name for name in filter(str.isdigit, os.listdir("/proc")) if _is_of(name, status.id)] == []


def _is_of(pid: str, instance_id: str) -> bool:
    try:
        return instance_id.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def test_it_is_refused_where_it_is_not_and_where_it_does_not_fit() -> None:
    async with supervisor_rig.started(PATH="/nowhere") as rig:
        refused = await start(rig, GVISOR)
        assert (refused.problem or {})["code"] == "isolation.runtime_missing"
        assert "runsc" in str(refused.problem)
        good = rig.spec("good")
        await rig.driver.start(good)
        assert (await until(rig, good.id, is_in(READY, FAILED))).phase is READY


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts container runtimes")
def test_the_doctor_tries_it_and_says_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "runsc"
    broken.write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo runsc version 1.2.3 && exit\necho ptrace is forbidden >&2\nexit 128\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (fact,) = (fact for fact in doctor_kernel.read_facts() if fact.name == "gvisor")
    assert "1.2.3" in fact.detail
    assert "starts nothing here (ptrace is forbidden)" in fact.detail


def test_the_bundle_says_what_the_box_does_and_holds_no_secret(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "output.fifo").touch()
    wish = sandbox.Wish(
        stage=tmp_path / "root",
        folder=tmp_path,
        home=tmp_path / "work",
        output=tmp_path / "output.fifo",
        read=[tmp_path],
        write=[tmp_path / "work"],
        network="isolated",
        runtime="gvisor",
    )
    bundle = tmp_path / "bundle"
    config = oci_bundle.render(
        wish, instance_id="ins_1", owner=4711, command=["/p/python"], limits={"RLIMIT_CORE": (0, 0)}, root=bundle / "rootfs"
    )
    assert not any(config["process"]["capabilities"].values())
    assert config["process"]["noNewPrivileges"] is True
    assert config["root"]["readonly"] is True
    assert {"type": "network"} in config["linux"]["namespaces"]
    writable = [mount for mount in config["mounts"] if mount["type"] == "bind" and "ro" not in mount["options"]]
    assert [mount["destination"] for mount in writable] == [str(tmp_path / "work"), str(tmp_path / "output.fifo")]
    assert all({"nosuid", "nodev"} <= set(mount["options"]) for mount in writable)
    oci_bundle.write(bundle, config, wish, owner=4711)
    assert json.loads((bundle / "config.json").read_text()) == config
    assert "agent:x:4711" in (bundle / "rootfs/etc/passwd").read_text()
    assert (bundle / "rootfs").stat().st_mode & 0o777 == 0o755


def test_a_sessions_bundle_has_its_home_in_memory_and_knows_the_hosts_that_are_allowed(tmp_path: Path) -> None:
    wish = sandbox.Wish(
        stage=tmp_path / "root",
        folder=tmp_path,
        home=tmp_path / "work",
        output=tmp_path / "output",
        write=[tmp_path / "work"],
        network="egress",
        runtime="gvisor",
        home_bytes=1 << 20,
        pins=[("api.example.com", "127.87.0.2", 443)],
    )
    (mount,) = (one for one in oci_bundle.render_mounts(wish, owner=4711) if one["destination"] == str(tmp_path / "work"))
    assert (mount["type"], {"size=1048576", "uid=4711", "mode=0700"} <= set(mount["options"])) == ("tmpfs", True)
    oci_bundle.write(tmp_path / "bundle", {"mounts": []}, wish, owner=4711)
    assert "127.87.0.2 api.example.com\n" in (tmp_path / "bundle/rootfs/etc/hosts").read_text()
