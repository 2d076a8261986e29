"""A dispatcher that dies at a named point: before or after one of its store's verbs. Arguments: URL, socket, owner, point.

A point is `before` or `after`, a verb and the how-manieth time: `after claim 1`. It dies as by SIGKILL.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import rig as rigs


class Dying:
    """The real store; the process dies at the point."""

    def __init__(self, store: Any, when: str, verb: str, number: int) -> None:
        self._store, self._when, self._verb, self._left = store, when, verb, number

    def __getattr__(self, name: str) -> Any:
        verb: Callable[..., Awaitable[Any]] = getattr(self._store, name)
        if name != self._verb:
            return verb

        async def fatal(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            mine = self._left
            if mine == 0 and self._when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            answer = await verb(*arguments, **named)
            if name == "claim" and not answer:
                self._left += 1  # a look at an empty queue is no durable write
            elif mine == 0 and self._when == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return fatal


async def main(url: str, socket: str, owner: str, point: str) -> None:
    when, verb, number = point.split()
    async with rigs.open_rig(url, Path(socket).parent) as rig:
        rig.store = Dying(rig.store, when, verb, int(number))  # type: ignore[assignment]
        async with rig.dispatcher(owner):
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
