"""Group commit: whatever is put while one commit is under way goes out together with the next.

Under light load an item is committed at once and alone; under heavy load the cost of a commit is shared by many.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from nexus.core import errors
from nexus.kit import backoff

T = TypeVar("T")
R = TypeVar("R")
_PAUSES = backoff.Backoff(first_s=0.1, longest_s=2.0, least_s=0.05)


class Grouped(Generic[T, R]):
    """`put` waits for its item's own result. `run` is the loop that commits; without it nothing moves.

    `patient`: while the store is unavailable, try again for ever instead of failing the items.
    """

    def __init__(
        self, commit: Callable[[Sequence[T]], Awaitable[Sequence[R]]], *, largest: int = 500, queue: int = 10_000, patient: bool
    ) -> None:
        self._commit = commit
        self._largest = largest
        self._queue: asyncio.Queue[tuple[T, asyncio.Future[R]]] = asyncio.Queue(queue)
        self._patient = patient

    async def put(self, item: T) -> R:
        """The result once committed. A cancelled caller's item may still be committed."""
        return await (await self.enqueue(item))

    async def enqueue(self, item: T) -> "asyncio.Future[R]":
        """Returns once the item is on its way; items are committed in the order in which they were enqueued."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        await self._queue.put((item, future))
        return future

    def enqueue_now(self, item: T) -> "asyncio.Future[R]":
        """The same at once; `asyncio.QueueFull` where `enqueue` would wait."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((item, future))
        return future

    async def run(self) -> None:
        group: list[tuple[T, asyncio.Future[R]]] = []
        try:
            while True:
                group = [await self._queue.get()]
                while len(group) < self._largest and not self._queue.empty():
                    group.append(self._queue.get_nowait())
                await self._settle(group)
        finally:
            self._abandon(group)

    async def _settle(self, group: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._try([item for item, _ in group])
        except errors.Unavailable as error:
            for _, future in group:
                _fail(future, error)
        except Exception as error:  # noqa: BLE001 - one item's fault: tell them apart by committing each alone
            if len(group) == 1:
                _fail(group[0][1], error)
                return
            for entry in group:
                await self._settle([entry])
        else:
            for (_, future), result in zip(group, results, strict=True):
                if not future.done():
                    future.set_result(result)

    async def _try(self, items: list[T]) -> Sequence[R]:
        tries = 0
        while True:
            try:
                return await self._commit(items)
            except errors.Unavailable:
                if not self._patient:
                    raise
                await asyncio.sleep(_PAUSES.pause_s(tries))
                tries += 1

    def _abandon(self, group: list[tuple[T, asyncio.Future[R]]]) -> None:
        while not self._queue.empty():
            group.append(self._queue.get_nowait())
        for _, future in group:
            _fail(future, errors.Unavailable("the host is stopping", code="service.stopping", retry_after_s=1.0))


def _fail(future: "asyncio.Future[R]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # a caller that has gone does not ask for it
