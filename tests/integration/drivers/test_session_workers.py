"""Sessions with workers of their own: apart from each other, fresh after the fork, limited, and gone when they end."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import session_rig

from nexus.core import errors
from nexus.core.sessions import How, SessionPhase
from nexus.kit import keys, session_tokens
from nexus.ports import session_node

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[session_rig.SessionRig]:
    async with session_rig.supervisor() as supervisor:
        yield await session_rig.ready(supervisor)


async def test_two_sessions_share_nothing(rig: session_rig.SessionRig) -> None:
    one, two = await rig.run("apart-1", ["who"]), await rig.run("apart-2", ["who"])
    for name in ("pid", "host", "random", "temporary", "uuid"):
        assert one[name] != two[name], name
    assert one["processes"] == [1, one["pid"]], "it sees its own processes alone"
    assert not any(name in one["environ"] for name in ("NEXUS_TOKEN", "NEXUS_ORDERS", "NEXUS_SESSION_BOX"))
    for path in ("~/note", "/tmp/note", "/dev/shm/note"):
        await rig.run("apart-1", ["write", path, "mine"])
        assert await rig.run("apart-1", ["read", path]) == "mine"
        assert await rig.run("apart-2", ["read", path]) == "FileNotFoundError"
    described = await rig.run("apart-1", ["descriptors"])
    assert not [one for one in described if re.search(r"\.sock|\.ctl|sessions/(?!.*fifo)", one)], described


async def test_the_same_id_finds_the_same_worker(rig: session_rig.SessionRig) -> None:
    first = await rig.place("same")
    assert first.how in (How.FORK, How.SPARE)
    places = await asyncio.gather(*(rig.place("same") for _ in range(20)))
    assert {place.address for place in places} == {first.address}
    assert {place.how for place in places} == {How.LIVE}
    found = await rig.run("same", ["who"])
    assert (await rig.run("same", ["who"]))["pid"] == found["pid"]


async def test_many_ask_at_once_for_a_new_one_and_one_is_made(rig: session_rig.SessionRig) -> None:
    places = await asyncio.gather(*(rig.place("new") for _ in range(20)))
    assert len({place.address for place in places}) == 1
    assert len([one for one in await rig.all() if one.session_id == "new"]) == 1


async def test_its_token_is_its_own_and_not_for_long(rig: session_rig.SessionRig) -> None:
    """Model clients are led to the session's relay, and the token that the relay shows opens nothing of another session's."""
    claims = session_tokens.mint(
        keys.hash_key(rig.spec.token), instance_id=rig.spec.id, session_id="token", expires_at=time.time() + 60
    )
    parsed = session_tokens.parse(claims)
    assert parsed is not None
    assert parsed.session_id == "token"
    environ = (await rig.run("token", ["who"]))["environ"]
    assert rig.spec.token not in environ.values()
    assert environ["OPENAI_BASE_URL"].startswith("http://127.0.0.1:")
    assert environ["OPENAI_API_KEY"].startswith("nxl_")


async def test_another_sessions_runs_are_refused(rig: session_rig.SessionRig) -> None:
    place = await rig.place("mine")
    refused = await session_rig.call(place.address, "yours", ["echo", 1])
    assert refused["code"] == "session.wrong_worker"


async def test_what_it_prints_is_its_own_line(rig: session_rig.SessionRig) -> None:
    await rig.run("printer", ["print", "a word of mine"])
    async with asyncio.timeout(5):
        while True:
            text = "".join(path.read_text() for path in rig.rig.home.logs.rglob("*.jsonl"))
            if any("a word of mine" in line and '"session_id":"printer"' in line for line in text.splitlines()):
                return
            await asyncio.sleep(0.02)


async def test_a_session_that_eats_memory_ends_alone_and_says_why(rig: session_rig.SessionRig) -> None:
    await rig.place("neighbour")
    if not (await rig.record("neighbour"))["handle"]["groups"]:
        pytest.skip("no memory control group for us here")
    await rig.run("neighbour", ["write", "~/kept", "yes"])
    with pytest.raises(ConnectionError):
        await rig.run("eater", ["eat", 1000])
    assert (await rig.last_end("eater"))["code"] == "instance.out_of_memory"
    assert await rig.run("neighbour", ["read", "~/kept"]) == "yes"
    assert await rig.run("eater", ["echo", "again"]) == "again"


async def test_a_worker_that_dies_is_there_again_for_the_next_run(rig: session_rig.SessionRig) -> None:
    address = (await rig.place("mortal")).address
    with pytest.raises(ConnectionError):
        await session_rig.call(address, "mortal", ["die", 3])
    assert await session_rig.call(address, "mortal", ["echo", "alive"]) == "alive", "the address outlives the worker"
    problem = await rig.last_end("mortal")
    assert problem["code"] == "session.exited"
    assert "code 3" in problem["cause"]


async def test_kill_leaves_nothing_of_it(rig: session_rig.SessionRig) -> None:
    await rig.run("doomed", ["daemon"])
    record = await rig.record("doomed")
    pids = [record["handle"]["pid"], record["handle"]["worker"]]
    await rig.order("doomed", "kill")
    await session_rig.gone(*pids, timeout_s=2)
    assert "doomed" not in {one.session_id for one in await rig.all()}
    name = record["handle"]["name"]
    assert not [path for path in rig.rig.home.root.rglob(f"*{name}*")]
    assert not [path for path in record["handle"]["groups"].values() if os.path.exists(path)]


async def test_kill_all_is_done_within_a_second(rig: session_rig.SessionRig) -> None:
    await asyncio.gather(*(rig.run(f"brake-{number}", ["echo", 1]) for number in range(10)))
    pids = [one.pid for one in await rig.all() if one.pid]
    killed = await rig.sessions.kill_sessions(session_node.SessionQuery(tenant=rig.spec.tenant, agent=rig.spec.agent))
    assert killed >= 10
    assert not [pid for pid in pids if session_rig.alive(pid)], "all are dead when the answer comes"
    assert await rig.all() == []
    assert await rig.run("brake-1", ["echo", "new"]) == "new"


async def test_exec_runs_inside_the_box(rig: session_rig.SessionRig) -> None:
    await rig.run("inside", ["write", "~/here", "x"])
    lines: list[dict[str, Any]] = [
        dict(line)
        async for line in rig.sessions.exec(
            rig.spec.id, "inside", ["sh", "-c", "cat; ls $HOME; ls /proc | grep -c '^[0-9]'; exit 7"], stdin="hi\n", timeout_s=10
        )
    ]
    assert lines[-1] == {"exit": 7}
    told = "".join(line["data"] for line in lines if line.get("stream") == "stdout").split()
    assert told[:2] == ["hi", "here"]
    assert int(told[2]) < 8


async def test_exec_that_takes_too_long_says_so(rig: session_rig.SessionRig) -> None:
    await rig.place("slow")
    lines = [line async for line in rig.sessions.exec(rig.spec.id, "slow", ["sleep", "100"], stdin=None, timeout_s=0.3)]
    assert lines[-1]["problem"]["code"] == "session.exec_timeout"
    await rig.order("slow", "kill")


async def test_a_session_is_frozen_and_a_connection_wakes_it(rig: session_rig.SessionRig) -> None:
    address = (await rig.place("cold")).address
    before = await rig.run("cold", ["who"])
    assert (await rig.order("cold", "freeze"))["phase"] == "frozen"
    assert (await session_rig.call(address, "cold", ["who"]))["pid"] == before["pid"]
    assert (await rig.status("cold")).phase is SessionPhase.LIVE
    await rig.order("cold", "freeze")
    assert (await rig.place("cold")).how is How.THAW


async def test_stopped_is_saved_and_found_again(rig: session_rig.SessionRig) -> None:
    await rig.run("keeper", ["write", "~/a/b.txt", "kept"])
    assert (await rig.sessions.stop_session(rig.spec.id, "keeper", grace_s=5)).phase is SessionPhase.ENDED
    assert (await rig.place("keeper")).how is How.RESTORE
    assert await rig.run("keeper", ["read", "~/a/b.txt"]) == "kept"


@pytest.mark.parametrize(
    ("instances", "session_id", "code"),
    [
        ([], "x", "session.no_instance"),
        (["ins_nobody"], "x", "session.no_instance"),
        ([1], "x", "request.invalid"),
        (["ins_nobody"], "../../etc", "session.invalid_id"),
        (["ins_nobody"], "", "session.invalid_id"),
        (["ins_nobody"], "x" * 300, "session.invalid_id"),
    ],
)
async def test_what_cannot_be_placed_says_why(rig: session_rig.SessionRig, instances: Any, session_id: str, code: str) -> None:
    with pytest.raises(errors.NexusError) as raised:
        await rig.sessions.place(instances, session_id)
    assert raised.value.code == code


async def test_no_signal_of_the_agents_reaches_its_keeper(rig: session_rig.SessionRig) -> None:
    """Process 1 of the box is ours: the worker shares its user and cannot look into it."""
    await rig.place("inside")
    lines = [
        line
        async for line in rig.sessions.exec(
            rig.spec.id, "inside", ["sh", "-c", "kill -9 1; cat /proc/1/environ; ls /proc/1/fd; exit 0"], stdin=None, timeout_s=10
        )
    ]
    assert lines[-1] == {"exit": 0}
    assert "denied" in "".join(str(line.get("data")) for line in lines)
    assert (await rig.run("inside", ["echo", 1])) == 1


async def test_a_zygote_that_keeps_its_sessions_out_of_their_limits_is_not_believed() -> None:
    """Its author's code ran in it, and the first process of a box enters its control groups by itself."""
    cheats = "import os\nfrom nexus.worker import zygote\nzygote._enter = os.close\n"
    async with session_rig.supervisor() as supervisor:
        rig = await session_rig.ready(supervisor, code=session_rig.AGENT + cheats, session={"warm": 0})
        with pytest.raises(errors.Unavailable) as refused:
            await rig.place("unlimited")
        assert "control groups" in str(refused.value.cause)
        await supervisor.driver.stop(rig.spec.id, grace_s=5)
        async with asyncio.timeout(20):
            while await supervisor.driver.statuses():
                await asyncio.sleep(0.05)
        assert session_rig.leavings(supervisor) == []


async def test_a_session_that_just_began_has_a_memory_to_show(rig: session_rig.SessionRig) -> None:
    await rig.run("young", ["echo", 1])
    assert (await rig.status("young")).usage.memory_bytes > 0
