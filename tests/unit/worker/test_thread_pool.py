"""Calls in threads: every one ends once, quick ones share a thread, and none waits behind one that is stuck."""

import asyncio
import contextlib
import contextvars
import random
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nexus.core import errors
from nexus.worker import bodies, runs, thread_pool, threads

WAIT_S = 10.0
NAME = contextvars.ContextVar("NAME", default="nobody")


@contextlib.asynccontextmanager
async def pool(most: int = 64) -> AsyncIterator[thread_pool.ThreadPool]:
    made = thread_pool.ThreadPool(asyncio.get_running_loop(), most=most, name="test")
    yield made
    async with asyncio.timeout(WAIT_S):
        while made._active:
            await asyncio.sleep(0.001)
    assert made._moving == 0, "a thread is counted that takes no calls"


async def ask(made: thread_pool.ThreadPool, function: Any, *arguments: Any) -> Any:
    value, error = await made.submit(contextvars.copy_context(), function, arguments).ended
    if error is not None:
        raise error
    return value


async def test_quick_calls_share_a_thread() -> None:
    async with pool() as made:
        names = [await ask(made, lambda: threading.current_thread().name) for _ in range(100)]
    assert set(names) == {"test-1"}


async def test_calls_that_wait_for_each_other_are_in_threads_together() -> None:
    together = threading.Barrier(40)
    async with pool() as made, asyncio.timeout(WAIT_S):
        await asyncio.gather(*(ask(made, together.wait, WAIT_S) for _ in range(40)))


async def test_a_quick_call_passes_those_that_are_stuck() -> None:
    free = threading.Event()
    async with pool() as made, asyncio.timeout(WAIT_S):
        stuck = [asyncio.ensure_future(ask(made, free.wait, WAIT_S)) for _ in range(10)]
        assert [await ask(made, int, text) for text in ("1", "2", "3")] == [1, 2, 3]
        assert not any(one.done() for one in stuck)
        free.set()
        assert await asyncio.gather(*stuck) == [True] * 10


async def test_there_are_never_more_threads_than_allowed() -> None:
    together, lock, inside, most = threading.Barrier(4), threading.Lock(), 0, 0

    def stay() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        together.wait(WAIT_S)  # four at a time
        with lock:
            inside -= 1

    async with pool(most=4) as made, asyncio.timeout(WAIT_S):
        await asyncio.gather(*(ask(made, stay) for _ in range(12)))
    assert most == 4


async def test_a_call_has_the_context_of_its_caller_and_its_error_comes_back() -> None:
    NAME.set("caller")

    def fail() -> None:
        raise SystemExit(NAME.get())

    async with pool() as made:
        with pytest.raises(SystemExit, match="caller"):
            await ask(made, fail)


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_calls_do_each_ends_once(seed: int) -> None:
    choose = random.Random(seed)

    def work(number: int, wait_s: float) -> int:
        if wait_s:
            time.sleep(wait_s)
        return number

    async def client(made: thread_pool.ThreadPool, first: int) -> list[int]:
        found = []
        for number in range(first, first + 50):
            if choose.random() < 0.1:
                await asyncio.sleep(choose.choice((0, 0.001)))
            found.append(await ask(made, work, number, choose.choice((0, 0, 0, 0.0005, 0.004))))
        return found

    async with pool(most=8) as made, asyncio.timeout(60):
        found = await asyncio.gather(*(client(made, first * 50) for first in range(30)))
    assert [number for some in found for number in some] == list(range(1500))


def a_run() -> runs.Run:
    call = bodies.Call(input="", context={})
    return runs.Run(run_id="run_1", session_id="s", call=call, streaming=False, timeout_s=1.0, traceparent="")


async def test_a_stopped_run_leaves_the_call_that_it_is_in() -> None:
    began, free = threading.Event(), threading.Event()

    def stay() -> str:
        began.set()
        free.wait(WAIT_S)
        return "late"

    run = a_run()
    task = asyncio.ensure_future(threads.call(run, stay))
    async with asyncio.timeout(WAIT_S):
        while not began.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert run.leftover is not None
        assert not run.leftover.done()
        free.set()
        assert await run.leftover == ("late", None)


async def test_a_run_that_is_stopped_before_its_call_begins_never_makes_it() -> None:
    free, inside = threading.Event(), threading.Semaphore(0)
    made: list[int] = []

    def stay() -> None:
        inside.release()
        free.wait(WAIT_S)

    stuck = [asyncio.ensure_future(threads.call(a_run(), stay)) for _ in range(64)]
    for _ in range(64):
        while not inside.acquire(blocking=False):
            await asyncio.sleep(0.001)
    run = a_run()
    task = asyncio.ensure_future(threads.call(run, made.append, 1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.leftover is None
    free.set()
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*stuck)
    assert made == []


async def test_an_error_that_no_future_may_carry_is_told_as_another() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.call(a_run(), next, iter(()))
    with pytest.raises(errors.Invalid):
        await threads.call(a_run(), _refuse)


def _refuse() -> None:
    raise errors.Invalid("no", code="input.invalid")
