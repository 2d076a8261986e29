"""Each framework in its real environment: built by uv from the example's own requirements, run by a real worker process.

Only the frameworks named in FRAMEWORKS (or `all`) are run; `make frameworks` sets it. Environments are kept between runs.
"""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.integration.worker import conftest as workers

from nexus.drivers.process import environment_plans, environments, indexes
from nexus.kit import http_client
from nexus.testing import fake_llm
from nexus.worker import bundle

EXAMPLES = Path(__file__).parents[3] / "examples"
KEPT = Path(os.environ.get("NEXUS_FRAMEWORKS_HOME") or Path(tempfile.gettempdir(), f"nexus-frameworks-{os.getuid()}"))


FOLDERS = {"langgraph": "langgraph-agent"}


def asked(framework: str) -> bool:
    wanted = os.environ.get("FRAMEWORKS", "").split()
    return framework in wanted or "all" in wanted


class ModelDoor(workers.FakeDoor):
    """A door whose models are the scripted provider's. It counts what passes as the gateway does."""

    provider: fake_llm.FakeLlm

    async def _answer(self, request, reader, writer) -> None:
        if not request.path.startswith("/v1/") or request.headers.get("authorization") != f"Bearer {workers.TOKEN}":
            return await super()._answer(request, reader, writer)
        headers = {"content-type": "application/json"}
        target = http_client.parse_target(self.provider.origin)
        async with http_client.open_answer(
            request.method, target, request.path, headers=headers, body=request.body, timeout_s=30
        ) as (head, pieces):
            kind = head.get("content-type")
            writer.write(f"HTTP/1.1 {head.status} X\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
            async for piece in pieces:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
            writer.write(b"0\r\n\r\n")


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle.build_worker_copy(tmp_path_factory.mktemp("copies"))


@pytest.fixture
async def llm() -> AsyncIterator[fake_llm.FakeLlm]:
    async with fake_llm.FakeLlm() as server:
        yield server


@pytest.fixture
async def build() -> Callable:
    """The interpreter of an example's environment, built by the host's own code."""
    builder = environments.Environments(
        KEPT, environ=indexes.plan_environ(os.environ, indexes.read_pip_files(indexes.pip_files(os.environ))), timeout_s=1800
    )
    KEPT.mkdir(parents=True, exist_ok=True)

    async def ensure(source: Path) -> Path:
        plan = environment_plans.plan_environment(
            source, package_digest=str(source), host_python=environments.host_python(), python=None
        )
        return await builder.ensure(plan, lambda step, detail: None) / "bin" / "python"

    return ensure


@pytest.fixture
async def start(copy: Path, build: Callable, llm: fake_llm.FakeLlm, request) -> AsyncIterator[Callable]:
    """`start(example)`: a worker that runs it, talking to the scripted provider; `hosted=True` puts a door between them."""
    name = request.node.callspec.params["name"]
    await build(EXAMPLES / FOLDERS.get(name, name))
    folder = Path(tempfile.mkdtemp(prefix="nxf-", dir="/tmp"))
    starters: list[workers.Start] = []
    door = ModelDoor(str(folder / "door.sock"))
    door.provider = llm

    async def launch(
        example: str, entrypoint: str = "agent:agent", *, hosted: bool = False, files: dict[str, str] | None = None, **env: str
    ) -> workers.Worker:
        source = EXAMPLES / example
        place = Path(tempfile.mkdtemp(prefix="w", dir=folder))
        starter = workers.Start((await build(source), copy), place, door=door.path if hosted else None)
        starters.append(starter)
        code = files or {path.name: path.read_text() for path in source.glob("*.py")}
        own = (
            {} if hosted else {"OPENAI_BASE_URL": llm.base_url, "OPENAI_API_BASE": llm.base_url, "ANTHROPIC_BASE_URL": llm.origin}
        )
        keys = {} if hosted else {"OPENAI_API_KEY": "sk-test", "ANTHROPIC_API_KEY": "sk-test"}
        return await starter(code, entrypoint=entrypoint, HOME=str(place), **own, **keys, **env)

    launch.door = door
    async with door.serving():
        yield launch
        for starter in starters:
            await workers._end(starter)
    shutil.rmtree(folder, ignore_errors=True)
