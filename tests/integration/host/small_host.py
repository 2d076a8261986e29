"""A host whose processes are tiny servers, under the real keeper: `python small_host.py <keeper options>`.

Run with `--serve <kind>` it is one of those servers. `control` also runs the guardian, as the real one does.
`NEXUS_SMALL_FAIL=<name>` makes that process exit at once; `NEXUS_SMALL_DEAF=<name>` makes it ignore SIGTERM.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from nexus.apps import keeper, keeper_children, keeper_guard, settings


def plan(host: settings.HostSettings, environ, database_url: str) -> list[keeper_children.Child]:
    children = keeper_children.plan_children(host, environ, database_url)
    return [
        keeper_children.Child(
            name=child.name,
            argv=(sys.executable, "-P", __file__, "--serve", child.name),
            environment={**child.environment, **{k: v for k, v in environ.items() if k.startswith("NEXUS_SMALL_")}},
            log=child.log,
            directory=child.directory,
            rank=child.rank,
            grace_s=1.0,
        )
        for child in children
        if child.name != "postgres" or os.environ.get("NEXUS_SMALL_DATABASE")
    ]


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"pid": %d, "isolation": "none", "missing": ["everything"]}' % os.getpid()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
    finally:
        writer.close()


async def serve(name: str) -> None:
    host = settings.read_settings(os.environ)
    print(f"{name} begins", file=sys.stderr, flush=True)
    if os.environ.get("NEXUS_SMALL_FAIL") == name:
        print(f"{name} cannot find its thing", file=sys.stderr)
        sys.exit(3)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, (lambda: None) if os.environ.get("NEXUS_SMALL_DEAF") == name else stop.set)
    async with asyncio.TaskGroup() as tasks:
        if name.startswith("gateway"):
            server = await asyncio.start_server(answer, host.host, host.port, reuse_port=True)
            door = host.home.door_socket(int(os.environ["NEXUS_GATEWAY"]))
            door.parent.mkdir(parents=True, exist_ok=True)
            door.unlink(missing_ok=True)
            await asyncio.start_unix_server(answer, door)
        else:
            path = {"control": host.home.control_socket, "supervisor": host.home.supervisor_socket}.get(name)
            path = path or Path(host.home.run / f"{name}.sock")
            path.unlink(missing_ok=True)
            server = await asyncio.start_unix_server(answer, path)
        guard = tasks.create_task(watch(host)) if name == "control" else None
        await stop.wait()
        server.close()
        if guard:
            guard.cancel()
    print(f"{name} ended in order", file=sys.stderr, flush=True)


async def watch(host: settings.HostSettings) -> None:
    # The guardian starts `nexus.apps.keeper`; here the keeper is this file.
    keeper_guard.KEEPER = (sys.executable, "-P", __file__)
    await keeper_guard.watch(host.home)


if __name__ == "__main__":
    if "--serve" in sys.argv:
        asyncio.run(serve(sys.argv[2]))
    else:
        sys.exit(keeper.main(sys.argv[1:], plan=plan))
