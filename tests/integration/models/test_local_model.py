"""The local model as the gateway meets it: on its unix socket, with real weights and real processes."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator

import pytest

from nexus.kit import home as homes
from nexus.providers import local_model

pytestmark = pytest.mark.timeout(90)


class Caller:
    """One keep-alive connection that speaks just enough HTTP."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, home: homes.Home) -> AsyncIterator["Caller"]:
        reader, writer = await asyncio.open_unix_connection(str(home.model_socket("smollm2")))
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def send(self, path: str, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: model\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self.writer.write(head.encode() + data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        return int(lines[0].split()[1]), {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}

    async def answer(self) -> tuple[int, dict[str, object]]:
        status, headers = await self.head()
        return status, json.loads(await self.reader.readexactly(int(headers["content-length"])))

    async def chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()

    async def ask(self, path: str, body: dict[str, object]) -> tuple[int, dict[str, object]]:
        await self.send(path, body)
        return await self.answer()


def chat(text: str, **more: object) -> dict[str, object]:
    return {"model": "smollm2", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 12, **more}


async def until(condition: object, limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.02)


async def test_loads_on_the_first_request_and_speaks_every_dialect(home_with_weights: homes.Home) -> None:
    home = home_with_weights
    async with local_model.Activator(home) as activator:
        assert stat.S_IMODE(home.model_socket("smollm2").stat().st_mode) == 0o600
        async with Caller.connect(home) as caller:
            assert activator.pid is None, "a connection alone loads nothing"
            status, answer = await caller.ask("/v1/chat/completions", chat("What is the capital of France?"))
            assert status == 200
            assert answer["usage"]["completion_tokens"] > 0
            pid = activator.pid
            assert pid is not None
            status, answer = await caller.ask("/v1/responses", {"model": "smollm2", "input": "hi", "max_output_tokens": 4})
            assert (status, answer["object"]) == (200, "response")
            message = {"model": "smollm2", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
            status, answer = await caller.ask("/v1/messages", message)
            assert (status, answer["type"]) == (200, "message")
            status, answer = await caller.ask("/v1/messages/count_tokens", message)
            assert status == 200
            assert answer["input_tokens"] > 0
            assert activator.pid == pid, "one process answers all"
    assert not home.model_socket("smollm2").exists()
    assert not os.path.exists(f"/proc/{pid}"), "nothing outlives the activator"


async def test_streams_token_by_token_to_several_at_once(home_with_weights: homes.Home) -> None:
    async with local_model.Activator(home_with_weights) as _, asyncio.TaskGroup() as group:

        async def stream() -> list[bytes]:
            async with Caller.connect(home_with_weights) as caller:
                await caller.send(
                    "/v1/chat/completions", chat("Count to five.", stream=True, stream_options={"include_usage": True})
                )
                status, headers = await caller.head()
                assert (status, headers["content-type"]) == (200, "text/event-stream")
                return [chunk async for chunk in caller.chunks()]

        streams = [group.create_task(stream()) for _ in range(3)]
    for task in streams:
        text = b"".join(task.result())
        assert text.rstrip().endswith(b"data: [DONE]")
        assert b'"usage"' in text
        assert len(task.result()) > 5, "tokens come in pieces, not at the end"


async def test_a_client_that_leaves_ends_its_generation(home_with_weights: homes.Home) -> None:
    async with local_model.Activator(home_with_weights) as activator, Caller.connect(home_with_weights) as leaver:
        await leaver.send("/v1/chat/completions", chat("Write a very long story.", stream=True, max_tokens=3500, ignore_eos=True))
        await leaver.head()
        await anext(leaver.chunks())
        leaver.writer.close()
        pid = activator.pid
        await until(lambda: is_quiet(pid))


def is_quiet(pid: int | None, seen: dict[int | None, list[int]] | None = None) -> bool:
    """Whether the process used no CPU since the last few looks."""
    seen = SEEN if seen is None else seen
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    ticks = seen.setdefault(pid, [])
    ticks.append(int(fields[11]) + int(fields[12]))
    return len(ticks) > 20 and ticks[-1] == ticks[-20]


SEEN: dict[int | None, list[int]] = {}


async def test_a_killed_server_comes_back_on_the_same_connection(home_with_weights: homes.Home) -> None:
    async with local_model.Activator(home_with_weights) as activator, Caller.connect(home_with_weights) as caller:
        assert (await caller.ask("/v1/chat/completions", chat("hi")))[0] == 200
        first = activator.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert (await caller.ask("/v1/chat/completions", chat("hi")))[0] == 200
        assert activator.pid not in (None, first)


async def test_killed_in_the_middle_of_an_answer_the_client_is_told_or_cut(home_with_weights: homes.Home) -> None:
    async with local_model.Activator(home_with_weights) as activator, Caller.connect(home_with_weights) as caller:
        await caller.send("/v1/chat/completions", chat("Write a long story.", stream=True, max_tokens=3000, ignore_eos=True))
        await caller.head()
        await anext(caller.chunks())
        os.kill(activator.pid or 0, signal.SIGKILL)
        rest = await asyncio.wait_for(caller.reader.read(), 10)
        assert not rest.endswith(b"0\r\n\r\n"), "a cut stream must not look complete"
        async with Caller.connect(home_with_weights) as again:
            assert (await again.ask("/v1/chat/completions", chat("hi")))[0] == 200


async def test_unloads_when_idle_but_not_while_a_request_is_in_hand(home_with_weights: homes.Home) -> None:
    now = [0.0]
    async with (
        local_model.Activator(home_with_weights, idle_s=600, monotonic=lambda: now[0]) as activator,
        Caller.connect(home_with_weights) as caller,
    ):
        await caller.send("/v1/chat/completions", chat("Write a long story.", stream=True, max_tokens=3000, ignore_eos=True))
        await caller.head()
        now[0] = 10_000.0
        assert not await activator.unload_if_idle(), "busy is not idle"
        caller.writer.close()
        pid = activator.pid
        await until(lambda: is_quiet(pid))
        now[0] += 599
        assert not await activator.unload_if_idle()
        now[0] += 2
        assert await activator.unload_if_idle()
        assert activator.pid is None
        async with Caller.connect(home_with_weights) as again:
            assert (await again.ask("/v1/chat/completions", chat("hi")))[0] == 200


async def test_weights_that_are_absent_are_a_problem_with_the_next_step(home: homes.Home) -> None:
    async with local_model.Activator(home), Caller.connect(home) as caller:
        status, answer = await caller.ask("/v1/chat/completions", chat("hi" * 100_000))
        assert (status, answer["code"]) == (503, "model.not_pulled")
        assert answer["next_step"] == "nexus models pull smollm2"


async def test_weights_that_are_garbage_are_a_problem_not_a_hang(home: homes.Home) -> None:
    place = home.models / "smollm2" / "model.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"GGUF" + bytes(1000))
    async with local_model.Activator(home):
        for _ in range(2):
            async with Caller.connect(home) as caller:
                status, answer = await caller.ask("/v1/chat/completions", chat("hi"))
                assert (status, answer["code"]) == (503, "model.load_failed")


async def test_a_request_sent_ahead_of_the_answer_is_refused_by_closing(home_with_weights: homes.Home) -> None:
    async with local_model.Activator(home_with_weights), Caller.connect(home_with_weights) as caller:
        await caller.send("/v1/chat/completions", chat("hi"))
        await caller.send("/v1/chat/completions", chat("hi"))
        assert (await caller.answer())[0] == 200
        assert await asyncio.wait_for(caller.reader.read(), 10) == b""


async def test_a_prompt_larger_than_the_context_is_the_callers_error(home_with_weights: homes.Home) -> None:
    async with local_model.Activator(home_with_weights):
        async with Caller.connect(home_with_weights) as caller:
            status, _ = await caller.ask("/v1/chat/completions", chat("word " * 20_000))
            assert status == 400
        async with Caller.connect(home_with_weights) as caller:
            assert (await caller.ask("/v1/chat/completions", chat("hi")))[0] == 200


async def test_no_server_outlives_a_parent_that_was_killed(home_with_weights: homes.Home) -> None:
    program = (
        "import asyncio, sys, pathlib\n"
        "from nexus.kit import home as homes\n"
        "from nexus.providers import local_model\n"
        "async def main():\n"
        "    async with local_model.Activator(homes.Home(pathlib.Path(sys.argv[1]))) as activator:\n"
        "        await activator._engine.ready()\n"
        "        print(activator.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(home_with_weights.root), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 30))
    parent.kill()
    await parent.wait()
    await until(lambda: not os.path.exists(f"/proc/{pid}") or is_zombie(pid))


def is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True
