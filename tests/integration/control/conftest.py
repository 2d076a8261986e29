"""The rooms of control over a real database and a fake node, and the API over them."""

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from nexus.api import app as api_app
from nexus.api import services as api_services
from nexus.apps import control_memory
from nexus.core.principals import Principal, Role
from nexus.hosting import executor, loop, packages
from nexus.hosting import service as hosting_service
from nexus.identity import service as identity_service
from nexus.identity import tokens
from nexus.kit import clock, guard, home, keys
from nexus.secrets import master_key
from nexus.secrets import service as secret_service
from nexus.stores.postgres import access, engine, hosting, hosting_runs, run_store, session_store
from nexus.testing import drivers

CODE = b"def agent(input): return input\n"


def package(config: str, code: bytes = CODE, **files: bytes) -> bytes:
    """A project as the command line packs it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        contents = {"config.yaml": config.encode(), "agent.py": code, **files}
        for name, content in sorted(contents.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class SteadyClock(clock.SystemClock):
    """Times that a test can push forward: the monotonic one by `ahead`, the wall's by `later`."""

    def __init__(self) -> None:
        self.ahead = self.later = 0.0

    def time(self) -> float:
        return super().time() + self.later

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


@dataclass(slots=True)
class Control:
    hosting: hosting_service.HostingService
    identity: identity_service.IdentityService
    secrets: secret_service.SecretService
    reconciler: loop.Reconciler
    driver: drivers.FakeDriver
    clock: SteadyClock
    home: home.Home
    api: httpx2.AsyncClient
    admin: str
    runs: run_store.PostgresRunStore
    states: session_store.PostgresSessionStore
    clients: list[httpx2.AsyncClient] = field(default_factory=list)

    def as_key(self, key: str) -> httpx2.AsyncClient:
        client = httpx2.AsyncClient(
            transport=self.api._transport, base_url="http://control", headers={"Authorization": f"Bearer {key}"}
        )
        self.clients.append(client)
        return client

    async def key_of(self, tenant: str, *roles: str, **more: Any) -> httpx2.AsyncClient:
        answer = await self.api.post("/v1/keys", json={"tenant": tenant, "roles": list(roles), **more})
        assert answer.status_code == 201, answer.text
        return self.as_key(answer.json()["key"])

    async def upload(self, name: str, config: str = "", code: bytes = CODE, client: httpx2.AsyncClient | None = None) -> Any:
        body = package(f"name: {name}\nentrypoint: agent:agent\n{config}", code)
        answer = await (client or self.api).post(f"/v1/agents/{name}/versions", content=body)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    async def deploy(self, name: str, config: str = "", code: bytes = CODE, **asked: Any) -> Any:
        version = await self.upload(name, config, code)
        answer = await self.api.post("/v1/deployments", json={"agent": name, "version_id": version["id"], **asked})
        assert answer.status_code == 202, answer.text
        return answer.json()

    async def settle(self) -> None:
        """Go round until nothing is left to do; pushes the clock so that draining takes no time."""
        for _ in range(100):
            busy = await self.reconciler.round()
            self.clock.ahead += 1.5
            if not busy:
                return
        raise AssertionError("the reconciler does not come to rest")

    async def show(self, deployment: Any) -> Any:
        answer = await self.api.get(f"/v1/deployments/{deployment['id']}")
        assert answer.status_code == 200, answer.text
        return answer.json()


async def build(url: str, root: Path, driver: drivers.FakeDriver, stack: Any) -> Control:
    """One start of control on this database and home."""
    database = await stack.enter_async_context(engine.open_engine(url, pool_size=5))
    steady, place = SteadyClock(), home.Home(root)
    ring = master_key.load(text=None, file=None, home_file=place.master_key)
    store = hosting.PostgresHostingStore(database)
    secrets = secret_service.SecretService(store=access.PostgresSecretStore(database), ring=ring, clock=steady)
    await secrets.start()
    identity = identity_service.IdentityService(
        store=access.PostgresIdentityStore(database), owner_of_token=store.owner_of_token, clock=steady
    )
    await identity.start(place.admin_key)
    folder = packages.PackageFolder(place.packages, max_bytes=1024 * 1024)
    folder.clean()
    rooms = hosting_service.HostingService(
        store=store, folder=folder, secret_stamp=secrets.stamp, forget_secrets=secrets.forget, clock=steady
    )
    token_key = await secrets.platform_key("instance tokens")
    doing = executor.Executor(
        store=store,
        driver=driver,
        secret_values=secrets.values,
        tokens=executor.Tokens(derive=lambda one: tokens.instance_token(token_key, one), hash=keys.hash_key),
        door_of=lambda _: "/door.sock",
        forget_agent=rooms.forget_agent,
        forget_sessions=control_memory.Memory(database).forget_agent,
        clock=steady,
    )
    reconciler = loop.Reconciler(store=store, driver=driver, executor=doing, clock=steady)
    rooms.wake, rooms.statuses = reconciler.wake, lambda: reconciler.picture.statuses
    rooms.samples = reconciler.looks.samples = hosting_runs.PostgresRunSamples(database)

    async def restart(tenant: str, agent: str) -> None:
        await rooms.restart(tenant, agent, reason="secret changed")

    secrets.changed = restart
    services = api_services.Services(identity=identity, hosting=rooms, secrets=secrets, home=place, driver=driver)
    admin = place.admin_key.read_text().strip()
    transport = httpx2.ASGITransport(app=api_app.create_app(services), raise_app_exceptions=False)
    api = httpx2.AsyncClient(transport=transport, base_url="http://control", headers={"Authorization": f"Bearer {admin}"})
    return Control(
        hosting=rooms,
        identity=identity,
        secrets=secrets,
        reconciler=reconciler,
        driver=driver,
        clock=steady,
        home=place,
        api=api,
        admin=admin,
        runs=run_store.PostgresRunStore(database),
        states=session_store.PostgresSessionStore(database),
    )


@pytest.fixture
async def control(postgres_url: str, tmp_path: Path) -> AsyncIterator[Control]:
    import contextlib

    async with contextlib.AsyncExitStack() as stack:
        yield await build(postgres_url, tmp_path, drivers.FakeDriver(), stack)


@pytest.fixture
async def running(control: Control) -> AsyncIterator[Control]:
    """The same with its loops going."""
    async with guard.Loops() as loops:
        loops.start("reconciler", control.reconciler.run)
        loops.start("watch", control.reconciler.watch)
        yield control


async def eventually(condition: Callable[[], Awaitable[Any]], *, timeout_s: float = 20.0) -> Any:
    async with asyncio.timeout(timeout_s):
        while not (value := await condition()):
            await asyncio.sleep(0.01)
    return value


ADMIN = Principal(id="test", tenant="default", roles=frozenset({Role.ADMIN}))
