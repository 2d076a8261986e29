"""What the box means for an agent that means no harm, and for one that wants everything."""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import supervisor_rig

from nexus.core import instances
from nexus.core.phases import InstancePhase
from nexus.drivers.process import box_launcher, cgroups, launcher, sandbox
from nexus.testing.driver_contract import is_in, until, until_gone

Rig = supervisor_rig.SupervisorRig
READY, FAILED = InstancePhase.READY, InstancePhase.FAILED


async def start(rig: Rig, agent: str, options: dict[str, object] | None = None, **changes: Any) -> instances.InstanceStatus:
    spec = rig.spec_of({"agent.py": agent}, options=options or {}, **changes)
    await rig.driver.start(spec)
    status = await until(rig, spec.id, is_in(READY, FAILED))
    assert status.phase is READY, status.problem
    return status


async def test_a_worker_in_a_network_of_its_own_reaches_the_models_and_nothing_else() -> None:
    agent = (
        "import json, os, urllib.request\n"
        "def run(input):\n"
        "    request = urllib.request.Request(os.environ['OPENAI_BASE_URL'] + '/models', headers={\n"
        "        'authorization': 'Bearer ' + os.environ['OPENAI_API_KEY']})\n"
        "    with urllib.request.urlopen(request, timeout=10) as answer: models = json.load(answer)\n"
        "    try: urllib.request.urlopen(input, timeout=3)\n"
        "    except OSError as error: return [models, str(error.reason)]\n"
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"nxi_of_the_test" in head
        writer.write(_MODELS)
        await writer.drain()
        writer.close()

    async with supervisor_rig.started(plain=False) as rig:
        status = await start(rig, agent, {"network": "isolated"})
        # The gateway comes, goes and comes again after the box was made: its folder is bound, not its socket.
        for _ in range(2):
            door = await asyncio.start_unix_server(serve, rig.home.door_socket(0))
            rig.home.door_socket(0).chmod(0o666)
            with socket.create_server(("127.0.0.1", 0)) as outside:
                models, refused = await rig.run(status.id, f"http://127.0.0.1:{outside.getsockname()[1]}/")
            assert models == {"data": []}
            assert "refused" in refused
            door.close()
            await door.wait_closed()
            rig.home.door_socket(0).unlink(missing_ok=True)


_MODELS = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n{"data": []}'


async def test_bombs_hurt_only_their_own_box() -> None:
    agent = (
        "import os, threading\n"
        "def run(input):\n"
        "    if input == 'processes':\n"
        "        children = []\n"
        "        try:\n"
        "            while len(children) < 5000:\n"
        "                child = os.fork()\n"
        "                if child == 0:\n"
        "                    os.closerange(0, 1024)\n"
        "                    threading.Event().wait()\n"
        "                children.append(child)\n"
        "        except OSError as error: said = error.errno\n"
        "        for child in children:\n"
        "            os.kill(child, 9)\n"
        "            os.waitpid(child, 0)\n"
        "        return [len(children), said]\n"
        "    size = 0\n"
        "    try:\n"
        "        with open(input + '/fill', 'wb') as file:\n"
        "            while size < 1 << 30: size += file.write(bytes(1 << 20)); file.flush()\n"
        "    except OSError as error: return [size, error.errno]\n"
        "    finally: os.unlink(input + '/fill')\n"
    )
    layout = cgroups.detect("nexus-test-probe")
    cgroups.release(layout)
    async with supervisor_rig.started() as rig:
        status = await start(rig, agent, memory_bytes=256 << 20)
        if layout.has("pids"):
            roomy = await start(rig, agent)
            count, said = await rig.run(roomy.id, "processes")
            assert count <= cgroups.PROCESSES
            assert said == 11
        for folder in ("/tmp", "/dev/shm"):
            size, said = await rig.run(status.id, folder)
            assert size <= 128 << 20
            assert said == 28
        assert (await rig.status(status.id)).restarts == 0


async def test_the_root_takes_files_only_when_it_was_asked_to_and_forgets_them() -> None:
    agent = (
        "import os\n"
        "def run(input):\n"
        "    try: open('/mine', 'w').close()\n"
        "    except OSError as error: return error.errno\n"
        "    if input == 'die': os._exit(1)\n"
        "    return sorted(os.listdir('/'))\n"
    )
    async with supervisor_rig.started() as rig:
        closed = await start(rig, agent)
        assert await rig.run(closed.id, None) == 30
        opened = await start(rig, agent, {"read_only_root": False})
        assert "mine" in await rig.run(opened.id, None)
        assert not Path("/mine").exists()


async def test_baseline_lets_an_agent_look_into_its_own_processes_and_restricted_does_not() -> None:
    agent = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def run(input):\n"
        "    child = os.fork()\n"
        "    if child == 0: os._exit(0 if libc.unshare(0x10000000) == 0 else ctypes.get_errno())\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
    )
    async with supervisor_rig.started() as rig:
        assert await rig.run((await start(rig, agent)).id, None) == 1
        assert await rig.run((await start(rig, agent, {"security_context": "baseline"})).id, None) == 0


async def test_the_hosts_secrets_are_out_of_reach_and_the_box_knows_who_it_is() -> None:
    agent = (
        "import getpass, os, socket\n"
        "def run(input):\n"
        "    return {'user': getpass.getuser(), 'host': socket.gethostname(), 'pid': os.getpid(), 'root': os.listdir('/'),\n"
        "            'home': os.listdir(os.environ['NEXUS_SOURCE'].partition('/sources/')[0]), 'tmp': os.listdir('/tmp')}\n"
    )
    async with supervisor_rig.started() as rig:
        seen = await rig.run((status := await start(rig, agent)).id, None)
        assert seen["user"] == "agent"
        assert seen["host"].startswith("agent-")
        assert seen["pid"] == 2
        assert set(seen["home"]) == {"sources", "environments", "instances", "run", "worker"}
        assert "root" in seen["root"] or sys.base_prefix.startswith("/usr")
        assert psutil.Process(status.pid).uids().real >= sandbox.plan_owner(status.id, Path("/proc/self/uid_map").read_text()) - (
            0 if os.geteuid() == 0 else 10**10
        )


async def test_the_init_hands_signals_on_and_reaps_every_orphan() -> None:
    agent = (
        "import os, signal, time\n"
        "heard = []\n"
        "signal.signal(signal.SIGUSR2, lambda *_: heard.append('USR2'))\n"
        "def run(input):\n"
        "    if input == 'orphans':\n"
        "        for _ in range(20):\n"
        "            if os.fork() == 0:\n"
        "                if os.fork() == 0: os._exit(0)\n"
        "                os._exit(0)\n"
        "            os.wait()\n"
        "    return [heard, [name for name in os.listdir('/proc') if name.isdigit()]]\n"
    )
    async with supervisor_rig.started() as rig:
        status = await start(rig, agent)
        init = psutil.Process(status.pid).ppid()
        os.kill(init, signal.SIGUSR2)
        await rig.run(status.id, "orphans")
        async with asyncio.timeout(10):
            while True:
                heard, processes = await rig.run(status.id, None)
                if heard == ["USR2"] and processes == ["1", "2"]:
                    break
                await asyncio.sleep(0.02)
        os.kill(init, signal.SIGKILL)
        await until(rig, status.id, lambda status: status.restarts == 1 and status.phase is READY)
        assert launcher.born(status.pid or 0) is None


async def test_starting_and_stopping_leaves_nothing() -> None:
    async with supervisor_rig.started() as rig:
        first = await start(rig, supervisor_rig.GOOD)
        await rig.driver.stop(first.id, grace_s=0)
        await until_gone(rig, first.id)
        assert rig.process is not None
        supervisor = psutil.Process(rig.process.pid)
        before = supervisor.num_fds(), Path("/proc/mounts").read_text().count("nexus-node")
        for _ in range(5):
            ids = [(await start(rig, supervisor_rig.GOOD)).id for _ in range(2)]
            for one in ids:
                await rig.driver.stop(one, grace_s=0)
            for one in ids:
                await until_gone(rig, one)
        async with asyncio.timeout(10):
            while supervisor.num_fds() > before[0]:
                await asyncio.sleep(0.05)
        assert supervisor.children() == []
        assert Path("/proc/mounts").read_text().count("nexus-node") == before[1]
        assert list((rig.home.run / "i").iterdir()) == []
        assert list(rig.home.instances.iterdir()) == []


def test_a_box_that_cannot_be_made_says_which_step_failed(tmp_path: Path) -> None:
    layers = box_launcher.find_layers(cgroups.Layout())
    if not layers.boxed:
        pytest.skip("this machine has no namespaces for us")
    os.mkfifo(tmp_path / "output")
    output = os.open(tmp_path / "output", os.O_RDWR)
    made = box_launcher.BoxLauncher(cgroups.Layout(), layers=layers)
    wish = sandbox.Wish(stage=tmp_path / ("no" * 200), folder=Path("/"), home=Path("/"), output=tmp_path / "output")
    for change, said in (({}, "too long"), ({"stage": tmp_path / "stage", "folder": Path("/not/there")}, "/not/there")):
        wish = sandbox.Wish(**{**{name: getattr(wish, name) for name in ("stage", "folder", "home", "output")}, **change})
        with pytest.raises(Exception, match="cannot be made") as caught:
            made.launch(
                launcher.Plan(
                    instance_id="ins_x", command=["/bin/true"], environ={}, folder=Path("/"), output=output,
                    memory_bytes=None, cpu_millis=None, wish=wish,
                )
            )  # fmt: skip
        assert said in json.dumps(str(getattr(caught.value, "cause", ""))), getattr(caught.value, "cause", "")
    os.close(output)
