"""A real supervisor process on a home of its own, with agents written on the fly."""

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from nexus.core import errors, ids, instances
from nexus.drivers.process import client, launcher
from nexus.kit.home import Home
from nexus.wire import archive

GOOD = "print('hello', flush=True)\ndef run(input):\n    return input\n"
BAD = "raise RuntimeError('broken at import')\n"
DIES = "import os\ndef run(input):\n    os._exit(int(input))\n"


class SupervisorRig:
    """`plain`: with the standard-library worker of the tests instead of the host's own."""

    def __init__(self, root: Path, *, plain: bool = True) -> None:
        self.home = Home(root)
        self.driver = client.ProcessDriver(self.home.supervisor_socket)
        self._plain = plain
        self._count = 0
        self.instance_ids: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.environ: dict[str, str] = {}

    def command(self) -> list[str]:
        served = [str(Path(__file__).with_name("plain_worker.py"))] if self._plain else ["-m", "nexus.apps.supervisor"]
        return [sys.executable, *served]

    async def up(self) -> None:
        with (self.home.root / "supervisor.log").open("ab") as log:
            environ = {**os.environ, "NEXUS_HOME": str(self.home.root), **self.environ}
            self.process = subprocess.Popen(self.command(), env=environ, stderr=log)
        async with asyncio.timeout(20):
            while True:
                assert self.process.poll() is None, (self.home.root / "supervisor.log").read_text()
                with contextlib.suppress(errors.Unavailable):
                    await self.driver.statuses()
                    return
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def down(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def spec_of(self, files: dict[str, str], **changes: Any) -> instances.InstanceSpec:
        """A spec of a new agent made of these files."""
        self._count += 1
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            packed = archive.pack(Path(folder))
        self.home.packages.mkdir(parents=True, exist_ok=True)
        (self.home.packages / f"{packed.digest}.tar.gz").write_bytes(packed.data)
        spec = instances.InstanceSpec(
            id=ids.new_id(ids.INSTANCE),
            tenant="acme",
            agent=f"agent-{self._count}",
            environment="development",
            deployment_id=ids.new_id(ids.DEPLOYMENT),
            version_id=ids.new_id(ids.VERSION),
            version="1.0.0",
            package_digest=packed.digest,
            entrypoint="agent:run",
            token="nxi_of_the_test",
            door=str(self.home.door_socket(0)),
            start_timeout_s=20.0,
        )
        self.instance_ids.append(spec.id)
        return dataclasses.replace(spec, **changes)

    def spec(self, behaviour: str) -> instances.InstanceSpec:
        return self.spec_of({"agent.py": {"good": GOOD, "bad": BAD}[behaviour]})

    async def run(self, instance_id: str, given: Any, *, timeout_s: float = 30.0) -> Any:
        """`POST /run` on the instance's own socket; ConnectionError when it dies meanwhile."""
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(self.home.instance_socket(instance_id)), limit=2**24)
            try:
                body = json.dumps({"input": given}).encode()
                writer.write(
                    b"POST /run HTTP/1.1\r\nhost: instance\r\nconnection: close\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n" % len(body) + body
                )
                answer = await reader.read()
            finally:
                writer.close()
        if b"\r\n\r\n" not in answer:
            raise ConnectionError("it died")
        return json.loads(answer.partition(b"\r\n\r\n")[2])["output"]

    async def status(self, instance_id: str) -> instances.InstanceStatus:
        return next(status for status in await self.driver.statuses() if status.id == instance_id)

    async def crash(self, instance_id: str) -> None:
        pid = (await self.status(instance_id)).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    async def cut(self) -> None:
        self.kill()

    async def close(self) -> None:
        """End the supervisor and whatever it left running."""
        await self.driver.__aexit__(None, None, None)
        if self.process is not None and self.process.poll() is None:
            try:
                self.down()
            except subprocess.TimeoutExpired:
                self.kill()
        for file in self.home.instances.glob("*/status.json"):
            handle = json.loads(file.read_text())["handle"]
            if handle and launcher.born(handle["pid"]) == handle["born"]:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(handle["pid"], signal.SIGKILL)


@contextlib.asynccontextmanager
async def started(*, plain: bool = True, **environ: str) -> AsyncIterator[SupervisorRig]:
    root = Path(tempfile.mkdtemp(prefix="nexus-node-"))
    rig = SupervisorRig(root, plain=plain)
    rig.environ = environ
    try:
        await rig.up()
        yield rig
    finally:
        await rig.close()
        shutil.rmtree(root, ignore_errors=True)
