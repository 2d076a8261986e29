"""An agent that tries to get out, in every tier of isolation; and each layer removed in turn."""

import asyncio
import os
import sys
from pathlib import Path

import golden
import pytest
import supervisor_rig
import tiers

from nexus.core.phases import InstancePhase
from nexus.drivers.process import launcher, sandbox
from nexus.testing.driver_contract import is_in, until, until_gone

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the box is Linux's")
WATCHED = ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/modprobe")
FOLDERS = ("/", "/etc", "/usr", "/usr/bin", "/usr/local/bin", "/dev")
KEPT = ("/etc", "/usr/bin", "/usr/local/bin")


def host() -> dict[str, object]:
    """What no agent may change, and what none may leave: its probes make files of this name."""
    seen: dict[str, object] = {path: Path(path).read_bytes() for path in WATCHED if os.path.exists(path)}
    seen |= {f"{folder} has a probe": "probe" in os.listdir(folder) for folder in FOLDERS}
    seen |= {folder: tiers.fingerprint(Path(folder)) for folder in KEPT}
    seen["mounts"] = [line for line in Path("/proc/mounts").read_text().splitlines() if "nexus-escape" in line]
    return seen


@pytest.mark.parametrize(
    "tier", [pytest.param(tier, marks=[pytest.mark.slow] if tier.startswith("gvisor") else []) for tier in tiers.OPTIONS]
)
async def test_nothing_new_is_allowed(tier: str) -> None:
    if why := tiers.lacking(tier):
        pytest.skip(why)
    before = host()
    async with tiers.supervised(tier) as rig:
        capabilities = await rig.driver.capabilities()
        assert capabilities.isolation == ("process" if tier == "unboxed" else "box"), capabilities.missing
        found = await tiers.attack(rig, tiers.OPTIONS[tier])
    assert golden.surprises(tier, found, golden.read()) == []
    assert len(found) == len(golden.read())
    assert host() == before
    assert await tiers.lasting(rig) == []


def test_the_page_shows_the_table() -> None:
    assert golden.PAGE.read_text() == golden.render(golden.read()), "run: .venv/bin/python tests/escape/golden.py"


def test_the_suite_would_notice() -> None:
    table = {"C01 read /etc/shadow": {"restricted": "denied"}, "need: threads": {"restricted": "allowed"}}
    found = {"C01 read /etc/shadow": ["allowed", "root:"], "need: threads": ["denied", "EPERM"], "new": ["allowed", ""]}
    assert len(golden.surprises("restricted", found, table)) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="playing a weak machine needs root")
@pytest.mark.parametrize("layer", sandbox.LAYERS)
async def test_without_a_layer_agents_run_strangers_do_not_and_it_is_said(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers.WeakRig, "layer", layer)
    async with tiers.supervised("unboxed") as rig:
        missing = (await rig.driver.capabilities()).missing
        assert any(line.startswith(sandbox.COSTS[layer]) for line in missing)
        good = rig.spec("good")
        await rig.driver.start(good)
        assert (await until(rig, good.id, is_in(InstancePhase.READY, InstancePhase.FAILED))).phase is InstancePhase.READY
        assert await rig.run(good.id, "here") == "here"
        stranger = rig.spec_of({"agent.py": supervisor_rig.GOOD}, options={"untrusted": True})
        await rig.driver.start(stranger)
        problem = (await until(rig, stranger.id, is_in(InstancePhase.READY, InstancePhase.FAILED))).problem or {}
        assert problem["code"] == "isolation.layer_missing"
        assert sandbox.COSTS[layer] in str(problem["cause"])


@pytest.mark.parametrize("way", ["stop", "crash"])
async def test_a_daemon_that_hears_nothing_ends_with_its_instance(way: str) -> None:
    async with tiers.supervised("restricted") as rig:
        status = await tiers.started(rig, {})
        await rig.run(status.id, {"do": "linger"})
        lingering = [pid for pid in launcher.marked(status.id) if pid != status.pid]
        assert lingering
        if way == "crash":
            await rig.crash(status.id)
            await until(rig, status.id, lambda status: status.restarts == 1 and status.phase is InstancePhase.READY)
        await rig.driver.stop(status.id, grace_s=0)
        await until_gone(rig, status.id)
        async with asyncio.timeout(5):
            while tiers.alive(lingering):
                await asyncio.sleep(0.02)
        assert launcher.marked(status.id) == []
        assert not any(status.id in path.name for path in (rig.home.run / "i").iterdir())
        # other supervisors' groups come and go meanwhile, which a walk takes as it finds
        assert not any(status.id in folders for _, folders, _ in os.walk("/sys/fs/cgroup"))


async def test_a_token_is_in_no_argument_list_and_in_no_file() -> None:
    async with tiers.supervised("restricted") as rig:
        status = await tiers.started(rig, {}, secrets={"API_KEY": "canary-of-the-agent"})
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                arguments = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            assert b"canary-of-the-agent" not in arguments
            assert b"nxi_of_the_test" not in arguments
        for path in rig.home.root.rglob("*"):
            if path.is_file():
                assert b"canary-of-the-agent" not in path.read_bytes()
        assert status.pid is not None
