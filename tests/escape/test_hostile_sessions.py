"""A supervisor faced with hostile sessions: what they leave in their work directory, say at their start, and write when saved."""

import asyncio
import json
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import session_rig
import supervisor_rig
import tiers

from nexus.core import errors, instances
from nexus.core.sessions import How
from nexus.drivers.process import session_archive
from nexus.kit.home import Home
from nexus.worker import session_link

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the box is Linux's"),
    pytest.mark.asyncio(loop_scope="module"),
]
MESS = (
    session_rig.AGENT
    + r"""
def do_mess(secret):
    home = os.environ["HOME"]
    os.chdir(home)
    for name in (b"two\nlines", b"\xff\xfe", b"-rf", b"\x1b[2Jclear", b"a" * 255, b"..\\..\\up", b"%s%n"):
        open(name, "w").write("hostile")
    os.symlink(secret, "away")
    os.symlink("/proc/self/root" + secret, "round")
    os.symlink("loop", "loop")
    os.symlink("..", "up")
    os.mkfifo("fifo")
    socket.socket(socket.AF_UNIX).bind("socket")
    open("kept", "w").write("kept")
    os.link("kept", "linked")
    os.makedirs("/".join(["deep"] * 300))
    refused = []
    for attempt in (lambda: os.mknod("disk", 0o060600, os.makedev(254, 0)), lambda: os.link(secret, "hard")):
        try: attempt()
        except OSError as error: refused.append(error.errno)
    def race():
        while True:
            os.rename("kept2", "kept3") if os.path.exists("kept2") else open("kept2", "w").close()
            os.path.lexists("swap") and os.unlink("swap")
            os.symlink(secret, "swap")
            os.unlink("swap")
            os.mkdir("swap")
            os.rmdir("swap")
    threading.Thread(target=race, daemon=True).start()
    return len(refused)
def do_sparse(size):
    with open(os.environ["HOME"] + "/sparse", "w") as file: os.truncate(file.fileno(), size)
"""
)
# says to whoever listens on any descriptor what it will, while it is imported
LIES = """
import json, os, socket
for number in range(3, 64):
    try: link = socket.socket(fileno=os.dup(number))
    except OSError: continue
    for words in WORDS:
        try: socket.send_fds(link, [words], [0, 1, 2]) if SENDS else link.send(words)
        except OSError: continue
def run(given): return given
"""
SPEC = instances.InstanceSpec(
    id="ins_1",
    tenant="acme",
    agent="hostile",
    environment="development",
    deployment_id="dep_1",
    version_id="ver_1",
    version="1.0.0",
    package_digest="0" * 64,
    entrypoint="agent:run",
    token="",
    door="",
)
WORDS = {
    "no JSON": [b"worker"],
    "another kind": [b"[1, 2]", b"null"],
    "too long": [b" " * 200_000, b"{" * 100_000],
    "failed": [json.dumps({"is": "failed", "layer": "\x1b[2J" * 9, "text": "x" * 9000}).encode()],
    "before its time": [b'{"is": "ready"}', b'{"is": "worker"}', b'{"is": "ended", "id": "x", "code": 0}'] * 50,
    "orders": [b'{"do": "fork", "id": "../../x"}', b'{"do": "tell"}'],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[session_rig.SessionRig]:
    async with session_rig.supervisor() as supervisor:
        yield await session_rig.ready(supervisor)


def files_of(supervisor: supervisor_rig.SupervisorRig) -> dict[str, tuple[int, ...]]:
    """What every agent runs; folders are touched when they are used."""
    seen = tiers.fingerprint(*tiers.code_of(supervisor.home))
    return {path: found for path, found in seen.items() if not stat.S_ISDIR(found[1])}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "gvisor"])
async def test_what_a_session_leaves_behind_harms_nobody(how: str) -> None:
    if how == "gvisor" and tiers.lacking("gvisor"):
        pytest.skip(tiers.lacking("gvisor"))
    async with session_rig.supervisor() as supervisor:
        secret = supervisor.home.root / "secret"
        secret.write_text("canary")
        secret.chmod(0o644)
        options = {"runtime_class": "gvisor"} if how == "gvisor" else {}
        rig = await session_rig.ready(supervisor, code=MESS, options=options, session={"warm": 0})
        before = files_of(supervisor), os.lstat(secret).st_nlink
        assert await rig.run("mess", ["mess", str(secret)]) == (1 if how == "gvisor" else 2)
        await rig.order("mess", "stop")
        place = await rig.place("mess")
        assert place.how is How.RESTORE
        assert await rig.run("mess", ["read", "~/kept"]) == "kept"
        for name in ("away", "round", "up/secret", "loop"):
            assert await rig.run("mess", ["read", f"~/{name}"]) in ("FileNotFoundError", "OSError", "NotADirectoryError"), name
        assert "fifo" not in await rig.run("mess", ["list", "~"])
        await rig.run("mess", ["sparse", 4 << 30])
        await rig.order("mess", "stop")
        assert await rig.run("mess", ["read", "~/kept"]) == "kept", "what was kept before stays"
        assert await rig.run("other", ["echo", 1]) == 1
        assert (files_of(supervisor), os.lstat(secret).st_nlink) == before
        assert [path for path in supervisor.home.root.rglob("*") if path.name in ("kept", "linked", "fifo", "away")] == []


@pytest.mark.slow
@pytest.mark.parametrize("sends", [False, True])
@pytest.mark.parametrize("said", WORDS)
async def test_a_worker_that_lies_while_it_starts_ends_alone(rig: session_rig.SessionRig, said: str, sends: bool) -> None:
    code = LIES.replace("WORDS", repr(WORDS[said])).replace("SENDS", str(sends))
    liar = await session_rig.ready(rig.rig, code=code, options={"untrusted": True}, session={"warm": 0})
    ended = await asyncio.wait_for(asyncio.gather(liar.run("one", 1), return_exceptions=True), 30)
    code_of_it = getattr(ended[0], "code", None)
    assert ended[0] == 1 or isinstance(ended[0], ConnectionError) or code_of_it == "session.not_started", ended
    assert await rig.run("honest", ["echo", 1]) == 1
    await rig.rig.driver.stop(liar.spec.id, grace_s=0)


ZYGOTE = """
import os, socket, threading

def lie():
    while True:
        link, _ = orders.accept()
        link.send(b'{"is": "zygote", "reason": null}')
        kept.append(link)

kept, nobody = [], socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if "NEXUS_STATUS_FILE" in os.environ:  # a zygote, not a session
    orders = socket.socket(fileno=os.dup(4))
    orders.setblocking(True)
    nobody.bind(b"\\0nobody")
    nobody.listen()
    os.dup2(nobody.fileno(), 4)
    threading.Thread(target=lie, daemon=True).start()
def run(given): return given
"""


@pytest.mark.slow
async def test_a_version_that_says_it_may_be_forked_is_not_when_it_is_untrusted(rig: session_rig.SessionRig) -> None:
    """What a zygote says was said by what it imported."""
    liar = await session_rig.ready(rig.rig, code=ZYGOTE, options={"untrusted": True}, session={"warm": 0})
    assert (await liar.place("one")).how is How.EXEC
    assert await liar.run("one", 1) == 1
    await rig.rig.driver.stop(liar.spec.id, grace_s=0)


async def test_a_keeper_that_writes_without_end_fills_nothing(tmp_path: Path) -> None:
    """It is of the box, so the supervisor counts for itself; what was kept before stays."""
    archives = session_archive.Archives(Home(tmp_path), SPEC)
    path, beside = tmp_path / "keeper.ctl", tmp_path / "beside.tar"
    for floods, held in ((b"kept", False), (b"x" * (1 << 20), True)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            listener.listen()
            packing = asyncio.ensure_future(asyncio.to_thread(_lie, listener, floods, holds=held))
            saving = archives.save("one", path, beside, most=100_000)
            if held:
                with pytest.raises(errors.Exhausted) as caught:
                    await saving
                assert caught.value.code == "session.too_large"
            else:
                await saving
            for number in await packing:
                os.close(number)
        path.unlink()
        assert archives.path("one").read_bytes() == b"kept"
        assert not beside.exists()


def _lie(listener: socket.socket, flood: bytes, *, holds: bool) -> list[int]:
    """A keeper that writes more than it may, says that all is well, and keeps what it was given."""
    asked, _ = listener.accept()
    with asked:
        _, descriptors = session_link.receive(asked)
        try:
            while os.write(descriptors[0], flood) and holds:
                continue
        except BrokenPipeError:
            pass
        session_link.send(asked, {"exit": 0})
    if holds:
        return descriptors
    os.close(descriptors[0])
    return []
