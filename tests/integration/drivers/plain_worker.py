"""A worker of the standard library alone, and a supervisor that starts it: so that driver tests show the driver.

It keeps the worker's contract (status file, socket, /health, /status, exit 70) and runs `agent.py:run(input)` of its source.
Run as `python plain_worker.py` it is a supervisor; copied as `boot.py` it is the worker.
"""

import sys
from pathlib import Path


def build_worker_copy(target: Path) -> Path:
    copy = target / "plain"
    copy.mkdir(parents=True, exist_ok=True)
    (copy / "boot.py").write_text(Path(__file__).read_text().replace("MODE = 'supervisor'", "MODE = 'worker'"))
    return copy


MODE = 'supervisor'  # fmt: skip


def work() -> None:
    import asyncio
    import faulthandler
    import importlib
    import json
    import os
    import signal
    import traceback

    faulthandler.enable()
    status = Path(os.environ["NEXUS_STATUS_FILE"])

    def write(phase: str, **more: object) -> None:
        beside = status.with_suffix(".new")
        beside.write_text(json.dumps({"phase": phase, **more}))
        os.replace(beside, status)

    write("importing", detail="agent")
    sys.path.insert(0, os.environ["NEXUS_SOURCE"])
    try:
        agent = importlib.import_module("agent")
    except Exception as error:
        traceback.print_exc()
        write(
            "failed",
            problem={"code": "start.import_failed", "kind": "agent_failed", "detail": "import failed", "cause": repr(error)},
        )
        sys.stdout.flush()
        os._exit(70)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ", 2)[1]
            length = next(
                (int(line.split(":")[1]) for line in head.lower().splitlines() if line.startswith("content-length:")), 0
            )
            body = await reader.readexactly(length)
            code, value = 200, {"status": "healthy"}
            if path == "/health" and not getattr(agent, "healthy", lambda: True)():
                code = 503
            elif path == "/status":
                value = {"active_runs": getattr(agent, "active", 0), "pid": os.getpid()}
            elif path == "/run":
                value = {"output": await asyncio.to_thread(agent.run, json.loads(body)["input"])}
            data = json.dumps(value).encode()
            writer.write(b"HTTP/1.1 %d OK\r\ncontent-length: %d\r\n\r\n" % (code, len(data)) + data)
            await writer.drain()
        finally:
            writer.close()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, ended.set)
        server = await asyncio.start_unix_server(answer, os.environ["NEXUS_SOCKET"])
        write("ready")
        await ended.wait()
        server.close()
        print("stopped gracefully", flush=True)

    asyncio.run(serve())
    os._exit(0)


if __name__ == "__main__":
    if MODE == "worker":
        work()
    else:
        from nexus.apps import supervisor

        sys.exit(supervisor.main(build_worker_copy))
