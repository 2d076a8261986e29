"""Instances under a real supervisor: crashes, hangs, memory, floods, and the death of the supervisor itself."""

import asyncio
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import supervisor_rig

from nexus.core import errors, ids, instances
from nexus.core.phases import InstancePhase
from nexus.drivers.process import cgroups, launcher
from nexus.ports import logs
from nexus.testing.driver_contract import is_in, until, until_gone

Rig = supervisor_rig.SupervisorRig
READY, FAILED, STARTING = InstancePhase.READY, InstancePhase.FAILED, InstancePhase.STARTING
ENDED = is_in(READY, FAILED)


async def start(rig: Rig, spec: instances.InstanceSpec) -> instances.InstanceStatus:
    await rig.driver.start(spec)
    return await until(rig, spec.id, ENDED)


async def fails(rig: Rig, spec: instances.InstanceSpec) -> dict[str, object]:
    status = await start(rig, spec)
    assert status.phase is FAILED
    return dict(status.problem or {})


async def test_the_hosts_own_worker_serves_a_run(tmp_path: Path) -> None:
    async with supervisor_rig.started(plain=False) as rig:
        spec = rig.spec("good")
        assert (await start(rig, spec)).phase is READY
        assert await rig.run(spec.id, "hi") == "hi"
        bad = rig.spec("bad")
        problem = await fails(rig, bad)
        assert problem["phase"]
        assert "broken at import" in json.dumps(problem)


async def test_the_box_gets_its_own_environment_and_nothing_of_the_hosts(tmp_path: Path) -> None:
    agent = (
        "import os, resource, subprocess\n"
        "def run(input):\n"
        "    status = open('/proc/self/status').read()\n"
        "    return {'env': dict(os.environ), 'core': resource.getrlimit(resource.RLIMIT_CORE), 'cwd': os.getcwd(),\n"
        "            'fds': sorted(os.listdir('/proc/self/fd')), 'sid': os.getsid(0) == os.getpid(), 'status': status,\n"
        "            'oom': int(open('/proc/self/oom_score_adj').read()), 'stdin': os.readlink('/proc/self/fd/0')}\n"
    )
    async with supervisor_rig.started(HOST_SECRET="leak", PYTHONPATH="/nowhere") as rig:
        spec = rig.spec_of({"agent.py": agent}, env={"LOG_LEVEL": "info", "NEXUS_TOKEN": "forged"}, secrets={"API_KEY": "s3cret"})
        assert (await start(rig, spec)).phase is READY
        seen = await rig.run(spec.id, None)
        assert seen["env"]["API_KEY"] == "s3cret"
        assert seen["env"]["LOG_LEVEL"] == "info"
        assert seen["env"]["NEXUS_TOKEN"] == spec.token
        assert not {"HOST_SECRET", "PYTHONPATH", "USER", "NEXUS_HOME"} & seen["env"].keys()
        assert seen["cwd"] == seen["env"]["NEXUS_SOURCE"]
        assert (seen["core"], seen["sid"], seen["stdin"]) == ([0, 0], True, "/dev/null")
        assert "NoNewPrivs:\t1" in seen["status"]
        assert seen["oom"] >= 500
        on_disk = b"".join(file.read_bytes() for file in rig.home.instances.rglob("*") if file.is_file())
        assert b"s3cret" not in on_disk
        assert spec.token.encode() not in on_disk


@pytest.mark.parametrize(
    ("agent", "changes", "code", "said"),
    [
        ("raise ValueError('no luck')", {}, "start.import_failed", "no luck"),
        ("def run(:", {}, "start.import_failed", "SyntaxError"),
        ("print('last words', flush=True)\nimport os; os._exit(3)", {}, "start.exited", "code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", {}, "start.exited", "SIGSEGV"),
        ("print('thinking', flush=True)\nimport time; time.sleep(600)", {"start_timeout_s": 1.0}, "start.timeout", "importing"),
        ("healthy = lambda: False\ndef run(input): return input",
         {"health": instances.HealthCheck(interval_s=0.01, retries=2)}, "health.failing", "503"),
        ("def run(input): return input",
         {"health": instances.HealthCheck(interval_s=0.01, retries=2, path="/never")}, None, ""),
    ],
    ids=["raises", "syntax", "exits", "signal", "hangs", "unhealthy", "fine"],
)  # fmt: skip
async def test_an_agent_that_does_not_start_says_why(
    rig: Rig, agent: str, changes: dict[str, object], code: str | None, said: str
) -> None:
    status = await start(rig, rig.spec_of({"agent.py": agent}, **changes))
    if code is None:
        assert status.phase is READY
        return
    problem = dict(status.problem or {})
    assert problem["code"] == code
    assert problem["phase"] in ("start", "health")
    assert said in str(problem["cause"])
    assert problem["kind"] == "agent_failed"
    assert status.restarts == 0
    if "print" in agent:
        assert any("last words" in line or "thinking" in line for line in problem["log_tail"])


async def test_a_crash_is_mended_again_and_again_and_leaves_its_reason_in_the_log(rig: Rig) -> None:
    spec = rig.spec_of({"agent.py": supervisor_rig.DIES})
    await start(rig, spec)
    for count in (1, 2):
        with pytest.raises(ConnectionError):
            await rig.run(spec.id, 9)
        await until(rig, spec.id, lambda status, count=count: status.restarts == count and status.phase is READY)
    lines = [line async for line in rig.driver.logs(logs.LogQuery(tenant="acme", agent=spec.agent, level="error"))]
    assert any("exited with code 9" in line["message"] for line in lines)


async def test_an_unhealthy_instance_is_replaced_once_it_has_nothing_to_lose(rig: Rig) -> None:
    agent = (
        "import os\nactive = 0\nsick = os.environ['HOME'] + '/sick'\n"
        "def healthy(): return not os.path.exists(sick)\n"
        "def run(input):\n    global active\n    active = input\n    open(sick, 'w').close()\n"
    )
    spec = rig.spec_of({"agent.py": agent}, health=instances.HealthCheck(interval_s=0.05, retries=2))
    await start(rig, spec)
    await rig.run(spec.id, 1)
    status = await until(rig, spec.id, is_in(InstancePhase.UNHEALTHY))
    assert (status.problem or {})["code"] == "health.failing"
    assert status.restarts == 0
    sick = rig.home.instances / spec.id / "work" / "sick"
    sick.unlink()
    await until(rig, spec.id, is_in(READY))
    await rig.run(spec.id, 0)
    await until(rig, spec.id, lambda status: status.restarts >= 1)
    sick.unlink(missing_ok=True)
    await until(rig, spec.id, is_in(READY))


async def test_instances_outlive_a_killed_supervisor_and_are_adopted(rig: Rig) -> None:
    spec = rig.spec_of({"agent.py": supervisor_rig.DIES + "print('hello', flush=True)\n"}, secrets={"KEY": "v"})
    before = await start(rig, spec)
    rig.kill()
    assert await asyncio.to_thread(launcher.born, before.pid) is not None
    await rig.up()
    after = await rig.status(spec.id)
    assert (after.phase, after.pid, after.address, after.restarts) == (READY, before.pid, before.address, 0)
    with pytest.raises(ConnectionError):
        await rig.run(spec.id, 5)
    mended = await until(rig, spec.id, lambda status: status.restarts == 1 and status.phase is READY)
    assert mended.pid != before.pid
    environ = Path(f"/proc/{mended.pid}/environ").read_bytes()
    assert b"KEY=v" in environ
    assert spec.token.encode() in environ


async def test_what_died_while_no_supervisor_ran_waits_for_its_settings(rig: Rig) -> None:
    dead, stays_failed = rig.spec("good"), rig.spec("bad")
    before = await start(rig, dead)
    await start(rig, stays_failed)
    rig.kill()
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    await rig.up()
    waiting = await rig.status(dead.id)
    assert waiting.phase is InstancePhase.PENDING
    assert "control" in waiting.detail
    assert (await rig.status(stays_failed.id)).phase is FAILED
    await rig.driver.start(dead)
    await until(rig, dead.id, is_in(READY))


async def test_a_graceful_end_stops_everything_and_a_hangup_leaves_it(rig: Rig) -> None:
    spec = rig.spec_of({"agent.py": supervisor_rig.GOOD})
    status = await start(rig, spec)
    assert await asyncio.to_thread(rig.down, signal.SIGHUP) == 0
    assert launcher.born(status.pid or 0) is not None
    await rig.up()
    assert (await rig.status(spec.id)).pid == status.pid
    assert await asyncio.to_thread(rig.down) == 0
    assert launcher.born(status.pid or 0) is None
    assert list(rig.home.instances.iterdir()) == []
    assert not rig.home.instance_socket(spec.id).exists()
    text = (rig.home.logs / "agents" / "acme" / spec.agent / f"{spec.id}.jsonl").read_text()
    assert "stopped gracefully" in text


async def test_stopping_kills_what_will_not_end_and_all_its_children(rig: Rig) -> None:
    agent = (
        "import os, signal, subprocess\n"
        "def run(input):\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "    child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "    open(os.environ['HOME'] + '/deaf', 'w').close()\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    return child.pid\n"
    )
    spec = rig.spec_of({"agent.py": agent})
    status = await start(rig, spec)
    running = asyncio.ensure_future(rig.run(spec.id, None))
    deaf = rig.home.instances / spec.id / "work" / "deaf"
    async with asyncio.timeout(10):
        while not deaf.exists():
            await asyncio.sleep(0.02)
    children = Path(f"/proc/{status.pid}/task/{status.pid}/children").read_text().split()
    tasks = [pid for task in Path(f"/proc/{status.pid}/task").iterdir() for pid in (task / "children").read_text().split()]
    await rig.driver.stop(spec.id, grace_s=0.2)
    await until_gone(rig, spec.id)
    assert children or tasks
    for pid in {*children, *tasks, str(status.pid)}:
        assert launcher.born(int(pid)) is None
    assert not Path(f"/proc/{status.pid}").exists(), "it stays as a zombie"
    await asyncio.gather(running, return_exceptions=True)


async def test_memory_without_end_ends_only_the_one_that_asks_for_it(rig: Rig) -> None:
    layout = cgroups.detect("nexus-test-probe")
    cgroups.release(layout)
    if not layout.has("memory"):
        pytest.skip("this machine has no memory control group we may use")
    bomb = "def run(input):\n    hold = []\n    while True: hold.append(bytearray(8 << 20))\n"
    greedy = rig.spec_of({"agent.py": bomb}, memory_bytes=64 << 20)
    neighbour = rig.spec("good")
    await start(rig, greedy)
    before = await start(rig, neighbour)
    collected: list[instances.InstanceStatus] = []

    async def watch() -> None:
        async for status in rig.driver.watch():
            collected.append(status)  # noqa: PERF401 - it grows while others look

    watching = asyncio.ensure_future(watch())
    with pytest.raises(ConnectionError):
        await rig.run(greedy.id, None)
    await until(rig, greedy.id, lambda status: status.restarts == 1 and status.phase is READY)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    problem = next(status.problem for status in collected if status.id == greedy.id and status.problem)
    assert problem["code"] == "instance.out_of_memory"
    assert "64Mi" in str(problem["detail"])
    assert "--memory" in str(problem["next_step"])
    assert await rig.run(neighbour.id, "alive") == "alive"
    assert (await rig.status(neighbour.id)).pid == before.pid
    at_import = await fails(rig, rig.spec_of({"agent.py": "x = bytearray(512 << 20)"}, memory_bytes=64 << 20))
    assert at_import["code"] == "instance.out_of_memory"


async def test_a_flood_of_prints_is_bounded_and_the_supervisor_keeps_answering(rig: Rig) -> None:
    agent = (
        "import os\n"
        "def run(input):\n"
        "    line = ('x' * 999 + '\\n').encode() * 100\n"
        "    for _ in range(400): os.write(1, line)\n"
        "    os.write(1, b'the end\\n')\n"
        "    return 'done'\n"
    )
    spec = rig.spec_of({"agent.py": agent})
    await start(rig, spec)
    run = asyncio.ensure_future(rig.run(spec.id, None, timeout_s=60))
    answers = 0
    while not run.done():
        await rig.driver.statuses()
        answers += 1
        await asyncio.sleep(0.01)
    assert await run == "done"
    assert answers > 3
    query = logs.LogQuery(tenant="acme", agent=spec.agent, level="warning", limit=100_000)
    async with asyncio.timeout(30):
        while not any("lines dropped" in line["message"] for line in [line async for line in rig.driver.logs(query)]):
            await rig.run(spec.id, None, timeout_s=60)
    files = list((rig.home.logs / "agents" / "acme" / spec.agent).iterdir())
    assert sum(file.stat().st_size for file in files) < 24 * 1024 * 1024


async def test_hostile_lines_cannot_steer_a_terminal_or_pass_for_anothers(rig: Rig) -> None:
    agent = (
        "import json, os\n"
        "os.write(1, b'\\x1b]0;owned\\x07 \\xff\\x00 wide\\n')\n"
        "forged = {'message': 'forged', 'agent': 'other', 'instance_id': 'ins_x', 'at': 1, 'level': 'LOUD'}\n"
        "os.write(1, json.dumps(forged).encode() + b'\\n')\n"
        "os.write(1, b'y' * 200_000 + b'\\nafter\\n')\n"
        "def run(input): return input\n"
    )
    spec = rig.spec_of({"agent.py": agent})
    await start(rig, spec)
    lines = [line async for line in rig.driver.logs(logs.LogQuery(tenant="acme", agent=spec.agent))]
    assert [line["agent"] for line in lines] == [spec.agent] * len(lines)
    assert {line["instance_id"] for line in lines} == {spec.id}
    assert lines[0]["message"].startswith("\\x1b]0;owned\\x07")
    assert lines[1]["message"] == "forged"
    assert lines[1]["level"] == "info"
    assert lines[1]["at"] > 1_000_000
    assert max(len(line["message"]) for line in lines) < 20_000
    assert lines[-1]["message"] == "after"


async def test_following_goes_on_across_instances_and_logs_outlive_them(rig: Rig) -> None:
    first = rig.spec("good")
    await start(rig, first)
    await rig.driver.stop(first.id, grace_s=1)
    await until_gone(rig, first.id)
    rig.kill()
    await rig.up()
    query = logs.LogQuery(tenant="acme", agent=first.agent, follow=True, limit=10)
    second = rig.spec("good")
    second = dataclasses.replace(second, agent=first.agent)
    seen = []
    async with asyncio.timeout(20):
        stream = rig.driver.logs(query)
        async for line in stream:
            seen.append((line["instance_id"], line["message"]))
            if seen[-1] == (first.id, "stopped gracefully"):
                await rig.driver.start(second)
            if seen[-1] == (second.id, "hello"):
                break
        await stream.aclose()
    assert seen.index((first.id, "hello")) < seen.index((second.id, "hello"))


async def test_a_secret_that_an_agent_prints_is_taken_out_of_log_and_problem(rig: Rig) -> None:
    agent = "import os\nprint('key', os.environ['KEY'], flush=True)\nraise ValueError(os.environ['KEY'])"
    problem = await fails(rig, rig.spec_of({"agent.py": agent}, secrets={"KEY": "hunter2-hunter2"}))
    kept = b"".join(file.read_bytes() for file in rig.home.logs.rglob("*.jsonl"))
    assert b"key ***" in kept
    assert b"hunter2" not in kept + json.dumps(problem).encode() + (rig.home.root / "supervisor.log").read_bytes()


async def test_a_supervisor_that_dies_while_an_agent_starts_or_prints_costs_nothing(rig: Rig) -> None:
    slow = rig.spec_of({"agent.py": "import os, time\nwhile not os.path.exists(os.environ['HOME'] + '/go'): time.sleep(0.01)\n"})
    loud = rig.spec_of(
        {"agent.py": "def run(input):\n    for n in range(40): print('z' * 100_000, flush=True)\n    return 'done'\n"}
    )
    await start(rig, loud)
    await rig.driver.start(slow)
    before = await until(rig, slow.id, lambda status: status.step == "importing")
    rig.kill()
    run = asyncio.ensure_future(rig.run(loud.id, None))
    await asyncio.wait({run}, timeout=0.2)
    assert not run.done(), "4 MB do not fit into the pipe: it waits for a reader"
    await rig.up()
    assert await run == "done"
    (rig.home.instances / slow.id / "work" / "go").touch()
    assert (await until(rig, slow.id, ENDED)).pid == before.pid


async def test_stopping_while_it_starts_and_starting_while_it_stops(rig: Rig) -> None:
    hanging = rig.spec_of({"agent.py": "import time; time.sleep(600)"})
    await rig.driver.start(hanging)
    status = await until(rig, hanging.id, lambda status: status.step == "importing")
    await rig.driver.stop(hanging.id, grace_s=0)
    await until_gone(rig, hanging.id)
    assert launcher.born(status.pid or 0) is None
    deaf = rig.spec_of({"agent.py": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"})
    await start(rig, deaf)
    await rig.driver.stop(deaf.id, grace_s=30)
    with pytest.raises(errors.Conflict) as caught:
        await rig.driver.start(deaf)
    assert caught.value.code == "instance.stopping"
    await rig.crash(deaf.id)
    await until_gone(rig, deaf.id)


async def test_an_agent_that_tampers_with_its_own_files_harms_only_itself(rig: Rig) -> None:
    agent = (
        "import os\n"
        "here, shared = os.path.dirname(os.environ['HOME']), os.path.dirname(os.environ['NEXUS_SOCKET'])\n"
        "def run(input):\n"
        "    refused = []\n"
        "    for name in ('status.json', 'output.fifo', 'tmp/../status.json'):\n"
        "        try: os.unlink(f'{here}/{name}')\n"
        "        except OSError as error: refused.append(name)\n"
        "    for name in os.listdir(shared): os.unlink(f'{shared}/{name}')\n"
        "    os.mkfifo(f'{shared}/worker.json')\n"
        "    os.symlink(input, f'{shared}/sock')\n"
        "    os.symlink('/etc/passwd', os.environ['HOME'] + '/link')\n"
        "    if input == 'die': os._exit(1)\n"
        "    return refused\n"
    )
    spec, other = rig.spec_of({"agent.py": agent}), rig.spec("good")
    await start(rig, spec)
    await start(rig, other)
    passwords = Path("/etc/passwd").read_bytes()
    with pytest.raises(ConnectionError):
        await rig.run(spec.id, "die")
    (rig.home.instances / spec.id / "work" / "link").unlink()
    await until(rig, spec.id, lambda status: status.restarts == 1 and status.phase is READY)
    supervisor = str(rig.home.supervisor_socket)
    assert await rig.run(spec.id, supervisor) == ["status.json", "output.fifo", "tmp/../status.json"]
    assert rig.home.instance_socket(spec.id).is_socket()
    async with asyncio.timeout(10):
        lines = [line async for line in rig.driver.logs(logs.LogQuery(tenant="acme", agent=spec.agent))]
    assert any("the instance ended" in line["message"] for line in lines)
    pid = (await rig.status(spec.id)).pid
    rig.kill()
    (rig.home.instances / spec.id / "status.json").unlink()
    os.mkfifo(rig.home.instances / spec.id / "status.json")
    await rig.up()
    assert [status.id for status in await rig.driver.statuses()] == [other.id]
    assert launcher.born(pid or 0) is None, "what cannot be adopted is not left running"
    assert await rig.run(other.id, 1) == 1
    assert Path("/etc/passwd").read_bytes() == passwords


async def test_a_worker_that_puts_a_link_where_its_socket_belongs_leads_nobody_astray(rig: Rig) -> None:
    agent = (
        "import asyncio, os\n"
        "listen, at = asyncio.start_unix_server, os.environ['NEXUS_SOCKET']\n"
        "async def astray(answer, path):\n"
        "    server = await listen(answer, path)\n"
        "    os.unlink(path)\n"
        f"    os.symlink({str(rig.home.supervisor_socket)!r}, path)\n"
        "    return server\n"
        "asyncio.start_unix_server = astray\n"
        "def run(input): return input\n"
    )
    spec = rig.spec_of({"agent.py": agent})
    assert (await fails(rig, spec))["code"] == "start.no_socket"
    assert not rig.home.instance_socket(spec.id).is_symlink()
    assert rig.home.supervisor_socket.is_socket()


async def test_a_run_in_hand_may_end_before_its_instance_does_even_if_the_supervisor_dies(rig: Rig) -> None:
    async with supervisor_rig.started(plain=False) as real:
        wait = "while not os.path.exists(os.environ['HOME'] + '/go'): time.sleep(0.01)"
        agent = f"import os, time\ndef run(input):\n    {wait}\n    return 1\n"
        spec = real.spec_of({"agent.py": agent})
        await start(real, spec)
        run = asyncio.ensure_future(real.run(spec.id, None))
        await until(real, spec.id, lambda status: status.usage.active_runs == 1)
        await real.driver.stop(spec.id, grace_s=600)
        await until(real, spec.id, is_in(InstancePhase.STOPPING))
        real.kill()
        await real.up()
        assert (await real.status(spec.id)).phase is InstancePhase.STOPPING
        assert not run.done()
        (real.home.instances / spec.id / "work" / "go").touch()
        assert await run == 1
        await until_gone(real, spec.id)


async def test_a_second_order_to_stop_hurries_the_first(rig: Rig) -> None:
    spec = rig.spec_of({"agent.py": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"})
    await start(rig, spec)
    await rig.driver.stop(spec.id, grace_s=600)
    await until(rig, spec.id, is_in(InstancePhase.STOPPING))
    await rig.driver.stop(spec.id, grace_s=0)
    await until_gone(rig, spec.id)


async def test_usage_is_measured(rig: Rig) -> None:
    spec = rig.spec_of({"agent.py": "active = 3\ndef run(input): return sum(range(40_000_000))"})
    await start(rig, spec)
    await rig.run(spec.id, None)
    status = await until(rig, spec.id, lambda status: status.usage.cpu_s > 0.1 and status.usage.active_runs == 3)
    assert status.usage.memory_bytes > 1_000_000


async def test_bad_orders_are_refused_with_a_code(rig: Rig) -> None:
    good = rig.spec("good")
    for changes, code in [
        ({"id": "../../etc"}, None),
        ({"id": "ins_short"}, "instance.bad_id"),
        ({"agent": "../up"}, "name.invalid"),
        ({"tenant": "a/b"}, "name.invalid"),
        ({"package_digest": "../../x"}, "instance.bad_spec"),
        ({"env": {"A=B": "x"}}, "instance.bad_environment"),
        ({"secrets": {"A": "nul\0"}}, "instance.bad_environment"),
    ]:
        with pytest.raises(errors.NexusError) as caught:
            await rig.driver.start(dataclasses.replace(good, **changes))
        assert code is None or caught.value.code == code
    assert list(await rig.driver.statuses()) == []
    absent = await fails(rig, dataclasses.replace(good, package_digest="0" * 64))
    assert (absent["code"], absent["phase"]) == ("package.not_found", "build")


async def test_garbage_on_the_socket_does_no_harm(rig: Rig) -> None:
    for request in (
        b"PUT /instances/x HTTP/1.1\r\nhost: s\r\ncontent-length: 3\r\n\r\n{}}",
        b"PUT /instances/x HTTP/1.1\r\nhost: s\r\ncontent-length: 4\r\n\r\nnull",
        b"DELETE /instances/..%2f HTTP/1.1\r\nhost: s\r\n\r\n",
        b"DELETE /instances/" + ids.new_id("ins").encode() + b"?grace_s=never HTTP/1.1\r\nhost: s\r\n\r\n",
        b"GET /logs?tenant=..&agent=a HTTP/1.1\r\nhost: s\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nhost: s\r\n\r\n",
        b"\x00\x01\x02\r\n\r\n",
    ):
        reader, writer = await asyncio.open_unix_connection(str(rig.home.supervisor_socket))
        writer.write(request)
        head = await reader.readuntil(b"\r\n")
        assert b" 4" in head, (request, head)
        writer.close()
    assert list(await rig.driver.statuses()) == []


async def test_a_second_supervisor_on_the_same_home_is_refused(rig: Rig) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nexus.apps.supervisor",
        env={**os.environ, "NEXUS_HOME": str(rig.home.root)}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 7
    assert b"host.already_running" in said
    assert (await rig.driver.capabilities()).name == "process"


async def test_an_unreadable_record_is_forgotten_and_nothing_else(rig: Rig) -> None:
    spec = rig.spec("good")
    await start(rig, spec)
    rig.kill()
    for name, text in {ids.new_id("ins"): "{", "not-an-id": "{}"}.items():
        (rig.home.instances / name).mkdir()
        (rig.home.instances / name / "status.json").write_text(text)
    await rig.up()
    assert [status.id for status in await rig.driver.statuses()] == [spec.id]
    assert [folder.name for folder in rig.home.instances.iterdir()] == [spec.id]
