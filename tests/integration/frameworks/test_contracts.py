"""Apps written for other hosts' contracts, beyond one run after the other: WebSockets, background work, their own sessions."""

import asyncio
import base64
import json
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.integration.frameworks.conftest import asked
from tests.integration.worker import conftest as workers

from nexus.testing import fake_llm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180, func_only=True)]


def only(name: str) -> Any:
    skip = pytest.mark.skip(reason="make frameworks")
    return pytest.mark.parametrize("name", [pytest.param(name, marks=[] if asked(name) else [skip])])


class Socket:
    """A WebSocket client of a few lines: masked frames out, plain ones in. Source: RFC 6455."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def say(self, text: str, opcode: int = 1) -> None:
        data = text.encode()
        assert len(data) < 126
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        self._writer.write(bytes([0x80 | opcode, 0x80 | len(data)]) + mask + masked)

    async def hear(self) -> tuple[int, bytes]:
        first, length = await self._reader.readexactly(2)
        if length == 126:
            (length,) = struct.unpack("!H", await self._reader.readexactly(2))
        return first & 0x0F, await self._reader.readexactly(length)


@asynccontextmanager
async def connected(worker: workers.Worker, *, session: str = "s") -> AsyncIterator[tuple[str, Socket]]:
    reader, writer = await asyncio.open_unix_connection(str(worker.folder / "w.sock"))
    key = base64.b64encode(os.urandom(16)).decode()
    asked_for = ["GET /ws HTTP/1.1", "Host: agent", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    asked_for += [f"Sec-WebSocket-Key: {key}", "Nexus-Run-Id: run_ws", f"Nexus-Session-Id: {session}", "", ""]
    writer.write("\r\n".join(asked_for).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    try:
        yield head.split("\r\n")[0], Socket(reader, writer)
    finally:
        writer.close()


@only("agentcore")
async def test_a_websocket_talks_and_counts_as_a_run(name: str, start: Callable[..., Any], llm: fake_llm.FakeLlm) -> None:
    worker = await start(name, "agent:app", hosted=True)
    async with connected(worker) as (answered, socket):
        assert "101" in answered
        for said in ("first", "second"):
            llm.replies[:] = ["In short"]
            socket.say(said)
            heard = [(await socket.hear())[1].decode() for _ in range(3)]
            assert "".join(heard[:2]) == "In short"
            assert json.loads(heard[2]) == {"done": True}
        assert (await worker.call("GET", "/status")).json["active_runs"] == 1
        assert (await worker.run("beside it", session="s")).status == 200
        socket.say("", opcode=8)
        assert (await socket.hear())[0] == 8
    assert {entry.run_id for entry in start.door.model_calls()[:2]} == {"run_ws"}
    while (await worker.call("GET", "/status")).json["active_runs"]:
        await asyncio.sleep(0.01)


@only("agentcore")
async def test_a_stop_closes_websockets(name: str, start: Callable[..., Any], llm: fake_llm.FakeLlm) -> None:
    worker = await start(name, "agent:app")
    async with connected(worker) as (_, socket):
        stopped = asyncio.create_task(worker.stop())
        opcode, body = await socket.hear()
        assert (opcode, struct.unpack("!H", body[:2])[0]) in ((8, 1008), (8, 1012))
        assert await stopped == 0


@only("agentcore")
async def test_background_work_is_seen_and_waited_for(name: str, start: Callable[..., Any], llm: fake_llm.FakeLlm) -> None:
    worker = await start(name, "agent:app", NEXUS_GRACE_S="20")
    llm.turn(tokens=20, piece_s=0.05)
    assert (await worker.run({"prompt": "long", "later": True}, session="s")).output == "It is being rewritten."
    status = (await worker.call("GET", "/status")).json
    assert (status["background"], status["active_runs"], status["runs"]) == (True, 1, [])
    assert await worker.stop() == 0
    assert any("Async task completed: rewrite_later" in message for message in worker.messages())
    assert not llm.cancelled


@only("foundry")
async def test_foundry_app_is_told_user_and_request(name: str, start: Callable[..., Any], llm: fake_llm.FakeLlm) -> None:
    code = """
from azure.ai.agentserver.responses import ResponsesAgentServerHost, TextResponse

app = ResponsesAgentServerHost()

@app.response_handler
async def handler(request, context, cancellation_signal):
    if "fail" in await context.get_input_text():
        raise ValueError("no such step")
    return TextResponse(context, request, text=f"{context.platform_context.user_id_key} {len(await context.get_history())}")

app.run()
"""
    worker = await start(name, "agent:app", files={"agent.py": code})
    for said in ("ada 0", "ada 2", "ada 4"):
        assert (await worker.run("hi", session="s", context={"user_id": "ada"})).output == said
    assert (await worker.run("fail", session="s")).json["code"] == "agent.failed"
    assert (await worker.run("hi", session="s", context={"user_id": "bo"})).output == "bo 6"


@only("foundry")
async def test_foundry_invocations(name: str, start: Callable[..., Any], llm: fake_llm.FakeLlm) -> None:
    code = """
from azure.ai.agentserver.core import AgentServerHost
from starlette.responses import JSONResponse
from starlette.routing import Route

async def invoke(request):
    return JSONResponse({"session": request.query_params["agent_session_id"], "given": await request.json()})

app = AgentServerHost(routes=[Route("/invocations", invoke, methods=["POST"])])
app.run()
"""
    worker = await start(name, "agent:app", files={"agent.py": code})
    assert (await worker.run("hi", session="s@1")).output == {"session": "s@1", "given": {"prompt": "hi"}}
    assert (await worker.run({"a": 1}, session="s")).output == {"session": "s", "given": {"a": 1}}
