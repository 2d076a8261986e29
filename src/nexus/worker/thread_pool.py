"""Threads for short and long calls alike, made for an event loop: one thread takes the calls, as long as each is quick.

Waking a thread costs more than most calls take, and while Python runs one thread at a time a second one helps only where the
first one waits for something. So the calls queue up for one thread, and the loop looks every millisecond: a thread that is still
in the same call is left to it, and others are let in; a call that has waited for several looks gets one more. What has ended is
told to the loop in one go. `concurrent.futures.ThreadPoolExecutor` wakes a thread and the loop for each call.
"""

import asyncio
import collections
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any

_LOOK_S = 0.001
_PATIENT_LOOKS = 5  # no shorter than what a thread may wait for its turn in the interpreter (`sys.getswitchinterval`)
_IDLE_S = 30.0


class Call:
    """`function(*arguments)` in `context`. `ended` resolves to what it returned and what it raised, one of them None."""

    __slots__ = ("_unclaimed", "arguments", "context", "ended", "function")

    def __init__(
        self, context: Context, function: Callable[..., Any], arguments: tuple[Any, ...], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.context, self.function, self.arguments = context, function, arguments
        self.ended: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
        self._unclaimed = [True]

    def claim(self) -> bool:
        """True for the first who asks: the thread that begins it, or the caller who withdraws it."""
        try:
            return self._unclaimed.pop()
        except IndexError:
            return False

    def follow(self) -> asyncio.Future[tuple[Any, BaseException | None]]:
        """Another `ended`, for a caller whose own was cancelled while the call goes on."""
        self.ended = self.ended.get_loop().create_future()
        return self.ended


class _Thread:
    """`calls` counts those it has begun; `looked` is that count at the loop's last look."""

    __slots__ = ("calls", "gate", "in_call", "looked", "stuck")

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.calls, self.looked = 0, -1
        self.in_call = self.stuck = False


class ThreadPool:
    """At most `most` threads, for one event loop. Everything but `_live` and what it calls belongs to the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, most: int, name: str) -> None:
        self.loop = loop
        self._most, self._name, self._made = most, name, 0
        self._waiting: collections.deque[Call] = collections.deque()
        self._ended: collections.deque[tuple[Call, Any, BaseException | None]] = collections.deque()
        self._told = False
        self._lock = threading.Lock()  # for the three below
        self._active: set[_Thread] = set()
        self._moving = 0
        self._parked: list[_Thread] = []
        self._looks = False
        self._look, self._given, self._mark = 0, 0, 0

    def submit(self, context: Context, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Call:
        """Its turn comes, unless its caller claims it first."""
        call = Call(context, function, arguments, self.loop)
        self._waiting.append(call)
        self._given += 1
        with self._lock:  # whoever parks has looked for calls within it
            moving = self._moving
        if not moving:
            self._let_in(1)
        elif not self._looks:
            self._looks, self._look, self._mark = True, 0, self._given
            self.loop.call_later(_LOOK_S, self._watch)
        return call

    def _let_in(self, count: int) -> None:
        with self._lock:
            for _ in range(min(count, self._most - len(self._active))):
                self._moving += 1
                if self._parked:
                    thread = self._parked.pop()
                    self._active.add(thread)
                    thread.gate.release()
                else:
                    thread = _Thread()
                    self._active.add(thread)
                    self._made += 1
                    threading.Thread(target=self._live, args=(thread,), name=f"{self._name}-{self._made}", daemon=True).start()

    def _watch(self) -> None:
        """While calls wait: who is in the same call as at the last look is stuck there, and others come in."""
        waiting = len(self._waiting)
        if not waiting:
            self._looks = False
            for thread in self._active.copy():
                thread.looked = -1
            return
        with self._lock:
            for thread in self._active:
                calls = thread.calls
                if thread.in_call and thread.looked == calls and not thread.stuck:
                    thread.stuck = True
                    self._moving -= 1
                thread.looked = calls
        self._look += 1
        if not self._moving:
            self._let_in(waiting)
        elif self._look % _PATIENT_LOOKS == 0:
            if self._given - waiting < self._mark:
                self._let_in(1)
            self._mark = self._given
        self.loop.call_later(_LOOK_S, self._watch)

    def _settle(self) -> None:
        self._told = False
        while self._ended:
            call, value, error = self._ended.popleft()
            if not call.ended.done():
                call.ended.set_result((value, error))

    # in the threads

    def _live(self, thread: _Thread) -> None:
        while True:
            self._take_calls(thread)
            with self._lock:
                if self._waiting:
                    continue
                self._active.discard(thread)
                if not thread.stuck:
                    self._moving -= 1
                thread.stuck = False
                thread.gate.acquire(blocking=False)
                self._parked.append(thread)
            if not thread.gate.acquire(timeout=_IDLE_S):
                with self._lock:
                    if thread in self._parked:
                        self._parked.remove(thread)
                        return
                thread.gate.acquire()  # let in between the two

    def _take_calls(self, thread: _Thread) -> None:
        while True:
            try:
                call = self._waiting.popleft()
            except IndexError:
                return
            if not call.claim():
                continue
            thread.calls += 1
            thread.in_call = True
            value, error = _caught(call)
            thread.in_call = False
            if thread.stuck:
                with self._lock:
                    thread.stuck = False
                    self._moving += 1
            self._ended.append((call, value, error))
            del call, value, error
            if not self._told:
                self._told = True
                try:
                    self.loop.call_soon_threadsafe(self._settle)
                except RuntimeError:  # the loop is closed: nobody waits any more
                    return


def _caught(call: Call) -> tuple[Any, BaseException | None]:
    try:
        return call.context.run(call.function, *call.arguments), None
    except BaseException as error:  # noqa: BLE001 - whoever waits for it raises it
        return None, error
