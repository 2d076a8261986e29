"""A dispatcher as a process of its own, so that it can be killed or stopped. Arguments: database URL, door socket, owner."""

import asyncio
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import rig as rigs


async def main(url: str, socket: str, owner: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    async with rigs.open_rig(url, Path(socket).parent) as rig, rig.dispatcher(owner):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
