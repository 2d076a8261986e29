"""The control process: the API on `control.sock`, the route feed on `feed.sock`, the reconciler between them.

The composition root of control: it reads the environment, picks the adapters and introduces the rooms to one another.
Killed at any point it loses nothing: what is wanted is in PostgreSQL, what runs belongs to the supervisor.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy as sa
import uvicorn
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

import nexus
from nexus.api import app as api_app
from nexus.api import feed as api_feed
from nexus.api import services as api_services
from nexus.apps import (
    broker_guard,
    control_audit,
    control_models,
    control_owners,
    control_sessions,
    control_tasks,
    dispatching,
    keeper_guard,
    settings,
)
from nexus.core import errors
from nexus.core.deployments import Target
from nexus.core.principals import Action, Principal
from nexus.drivers.process import client as process_driver
from nexus.hosting import executor, loop, packages, routes
from nexus.hosting import service as hosting_service
from nexus.identity import service as identity_service
from nexus.identity import tokens
from nexus.kit import clock, guard, keys, private_socket
from nexus.kit.home import Home
from nexus.models import service as model_service
from nexus.secrets import master_key
from nexus.secrets import service as secret_service
from nexus.stores.postgres import access, engine, hosting, hosting_runs, migrate
from nexus.wire import feed

_LOG = logging.getLogger("nexus.control")
_TRACES_GO_TO = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
MAX_PACKAGE_BYTES = 256 * 1024 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
DATABASE_WAIT_S = 30.0
FIRST_ROUTES_WAIT_S = 10.0
KEYS_EVERY_S = 5.0
GRACE_S = 10
MEMORY_EVERY_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The rooms of one running control."""

    hosting: hosting_service.HostingService
    identity: identity_service.IdentityService
    secrets: secret_service.SecretService
    reconciler: loop.Reconciler
    driver: process_driver.ProcessDriver


def main() -> int:
    logging.basicConfig(level=os.environ.get("NEXUS_LOG_LEVEL", "INFO").upper(), format="%(levelname)s %(name)s %(message)s")
    for chatty in ("httpx2", "uvicorn.error", "alembic.runtime.plugins"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        return uvloop.run(serve(os.environ))
    except errors.NexusError as error:
        print("\n".join(settings.explain(error)), file=sys.stderr)  # noqa: T201 - the last words of a process
        return settings.EXIT_CODES[error.kind]


async def serve(environ: Mapping[str, str]) -> int:
    """Run until SIGTERM or SIGINT; a second one forces."""
    host = settings.read_settings(environ)
    url = settings.require_database(host, "control")
    os.umask(0o077)
    with _only_one(host.home):
        await engine.wait_until_up(url, timeout_s=DATABASE_WAIT_S)
        if await migrate.upgrade(url):
            _LOG.info("the database is at schema %s now", migrate.known_revisions()[-1])
        async with contextlib.AsyncExitStack() as stack:
            database = await stack.enter_async_context(engine.open_engine(url))
            driver = await stack.enter_async_context(process_driver.ProcessDriver(host.home.supervisor_socket))
            parts = await _build(host, environ, database, driver)
            await _run(host, environ, database, parts, stack)
    return 0


async def _build(
    host: settings.HostSettings, environ: Mapping[str, str], database: AsyncEngine, driver: process_driver.ProcessDriver
) -> Parts:
    """The rooms, introduced to each other."""
    system, home = clock.SystemClock(), host.home
    ring = master_key.load(
        text=environ.get("NEXUS_MASTER_KEY"), file=environ.get("NEXUS_MASTER_KEY_FILE"), home_file=home.master_key
    )
    store = hosting.PostgresHostingStore(database)
    secrets = secret_service.SecretService(store=access.PostgresSecretStore(database), ring=ring, clock=system)
    await secrets.start()
    token_key = await secrets.platform_key("instance tokens")
    owners = control_owners.Owners(store.owner_of_token)
    identity = identity_service.IdentityService(
        store=access.PostgresIdentityStore(database),
        owner_of_token=owners.find,
        clock=system,
        service_token=dispatching.service_token(home) if host.dispatchers else None,
        token_hash_of=lambda instance_id: keys.hash_key(tokens.instance_token(token_key, instance_id)),
    )
    await identity.start(home.admin_key)
    folder = packages.PackageFolder(home.packages, max_bytes=MAX_PACKAGE_BYTES)
    folder.clean()
    rooms = hosting_service.HostingService(
        store=store, folder=folder, secret_stamp=secrets.stamp, forget_secrets=secrets.forget, clock=system
    )
    doing = executor.Executor(
        store=store,
        driver=driver,
        secret_values=secrets.values,
        tokens=executor.Tokens(derive=lambda instance_id: tokens.instance_token(token_key, instance_id), hash=keys.hash_key),
        door_of=lambda instance_id: str(home.door_socket(_spread(instance_id, host.gateways))),
        forget_agent=rooms.forget_agent,
        forget_sessions=control_sessions.build_forgetting(database, driver),
        clock=system,
        traces=any(environ.get(name) for name in _TRACES_GO_TO),
    )
    reconciler = loop.Reconciler(store=store, driver=driver, executor=doing, clock=system)
    rooms.wake, rooms.statuses = reconciler.wake, lambda: reconciler.picture.statuses
    owners.picture = lambda: reconciler.picture
    rooms.samples = reconciler.looks.samples = hosting_runs.PostgresRunSamples(database)

    async def restart(tenant: str, agent: str) -> None:
        await rooms.restart(tenant, agent, reason="secret changed")

    secrets.changed = restart
    return Parts(hosting=rooms, identity=identity, secrets=secrets, reconciler=reconciler, driver=driver)


async def _run(
    host: settings.HostSettings,
    environ: Mapping[str, str],
    database: AsyncEngine,
    parts: Parts,
    stack: contextlib.AsyncExitStack,
) -> None:
    work = await stack.enter_async_context(
        control_tasks.run_tasks(
            database,
            environment=await _task_environment(environ, host, parts),
            door_sockets=dispatching.door_sockets(host.home, host.gateways),
            dispatches=not host.dispatchers,
            resolve_target=control_tasks.hosting_targets(parts.hosting),
            policy_of=control_tasks.hosting_policies(parts.hosting),
        )
    )
    parts.reconciler.queue_depth = work.tasks.queue_depth
    trail = await stack.enter_async_context(
        await control_audit.make_trail(
            database, environ=environ, home=host.home, secrets=parts.secrets, clock=clock.SystemClock()
        )
    )
    sink = control_models.Sink(control_audit.store_and_audit(work.telemetry.store, trail))
    server = api_feed.FeedServer(sink=sink.store)

    def publish_models(entries: Mapping[str, Any], default_model: str | None, unknown_model: str) -> None:
        server.publish("models", entries)
        server.publish("settings", {"settings": _settings_entry(environ, default_model, unknown_model)})

    models = sink.room = await stack.enter_async_context(
        control_models.run_models(
            database,
            environ=environ,
            where=host.home,
            key=await parts.secrets.platform_key("model providers"),
            post=work.webhooks.post,
            publish=publish_models,
        )
    )
    first_routes = asyncio.Event()

    async def publish_routes(picture: loop.Picture) -> None:
        entries: dict[str, Any] = dict(
            routes.render_deployments(
                picture.deployments,
                picture.revisions,
                picture.instances,
                picture.statuses,
                now=time.time(),
                barred=picture.barred,
            )
        )
        records = [each for mine in picture.instances.values() for each in mine]
        await models.declare(control_models.declared_in(picture))
        server.publish("hosting", entries | routes.render_tokens(picture.deployments, records))
        first_routes.set()

    parts.reconciler.published = publish_routes
    server.called = parts.reconciler.call_version
    work.telemetry.network = control_sessions.build_run_traffic(parts.driver, parts.reconciler)
    used = control_sessions.build_accounting(database, parts.driver, work.metrics.count_usage)
    services = api_services.Services(
        identity=parts.identity,
        hosting=parts.hosting,
        secrets=parts.secrets,
        home=host.home,
        origin=host.origin,
        driver=parts.driver,
        models=models,
        audit=trail,
        status=_status_of(host, database, parts, server, models),
        tasks=work.tasks,
        webhooks=work.webhooks,
        schedules=work.schedules,
        recordings=work.recordings,
        asks=work.asks,
        replays=work.replays,
        triggers=work.triggers,
        checkpoints=work.checkpoints,
        telemetry=work.telemetry,
        metrics=work.metrics,
        traces=work.traces,
        runs=work.runs,
        sessions=work.sessions,
        live_sessions=control_sessions.build_sessions(database, parts.hosting, parts.driver, used),
    )
    key_changes = _KeyChanges(parts.identity, server)
    await key_changes.publish()
    loops = await stack.enter_async_context(guard.Loops())
    loops.start("reconciler", parts.reconciler.run)
    loops.start("node changes", parts.reconciler.watch)
    loops.start("keys", key_changes.run)
    loops.start("accounting", used.run)
    loops.start("memory", _give_memory_back)
    loops.start("brokers", (await _broker_guard(host, environ, parts, work)).run)
    loops.start("keeper guard", lambda: keeper_guard.watch(host.home))
    async with _api(services, host.home) as api:
        with contextlib.suppress(TimeoutError):
            # Gateways keep the routes they have until these are known, so a restart of control takes no route away.
            async with asyncio.timeout(FIRST_ROUTES_WAIT_S):
                await first_routes.wait()
        async with server.serve(host.home.feed_socket):
            gc.collect()
            gc.freeze()
            _LOG.info("control serves %s", host.home.control_socket)
            await api


async def _broker_guard(
    host: settings.HostSettings, environ: Mapping[str, str], parts: Parts, work: control_tasks.TaskParts
) -> broker_guard.BrokerGuard:
    made = broker_guard.BrokerGuard(
        store=work.trigger_store,
        database_url=settings.require_database(host, "control"),
        trigger_key=await parts.secrets.platform_key("triggers"),
        egress_allow=environ.get("NEXUS_EGRESS_ALLOW", ""),
        log=host.home.logs / "brokers.log",
    )
    work.triggers.changed = made.wake
    return made


async def _give_memory_back() -> None:
    """A burst of records leaves the allocator with free pages it would keep for ever; hand them back now and then."""
    libc = ctypes.CDLL(None)
    while True:
        await asyncio.sleep(MEMORY_EVERY_S)
        if hasattr(libc, "malloc_trim"):
            await asyncio.to_thread(libc.malloc_trim, 0)


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handling, which would end the process before this one has closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def _api(services: api_services.Services, home: Home) -> AsyncIterator[asyncio.Task[None]]:
    """The API on its socket; the task ends when the process is told to stop."""
    config = uvicorn.Config(
        api_app.create_app(services),
        http="httptools",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=75,
    )
    server, running = _Server(config), asyncio.get_running_loop()

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, stop)
    listener = private_socket.listen(home.control_socket)
    async with asyncio.TaskGroup() as group:
        yield group.create_task(server.serve(sockets=[listener]), name="api")


class _KeyChanges:
    """Keeps the feed's keys equal to the stored ones: at once after a write here, soon after one elsewhere."""

    def __init__(self, identity: identity_service.IdentityService, server: api_feed.FeedServer) -> None:
        self._identity = identity
        self._server = server
        self._woken = asyncio.Event()
        identity.changed = self._woken.set

    async def publish(self) -> None:
        entries: dict[str, Any] = dict(routes.render_keys(await self._identity.live_keys()))
        self._server.publish("keys", entries | routes.render_service_key(keys.hash_key(self._identity.service_token)))

    async def run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEYS_EVERY_S):
                    await self._woken.wait()
            self._woken.clear()
            await self.publish()


async def _task_environment(
    environ: Mapping[str, str], host: settings.HostSettings, parts: Parts
) -> control_tasks.TaskEnvironment:
    """What the rooms for tasks and telemetry take from the environment; `Invalid` (`setting.invalid`) names what is wrong."""
    return control_tasks.read_environment(
        environ,
        database_url=settings.require_database(host, "control"),
        service_token=parts.identity.service_token,
        webhook_key=await parts.secrets.platform_key("webhooks"),
        link_key=await parts.secrets.platform_key("answer links"),
        trigger_key=await parts.secrets.platform_key("triggers"),
        origin=host.origin,
    )


def _status_of(
    host: settings.HostSettings,
    database: AsyncEngine,
    parts: Parts,
    server: api_feed.FeedServer,
    models: model_service.ModelService,
) -> Any:
    started, monotonic = time.time(), time.monotonic()

    async def status(caller: Principal) -> dict[str, Any]:
        async with database.connect() as connection:
            version = (await connection.execute(sa.text("show server_version"))).scalar_one()
        mine = [one for one in parts.reconciler.picture.deployments if one.tenant == caller.tenant]
        records = parts.reconciler.picture.instances
        phases = parts.reconciler.picture.statuses
        shown: dict[str, Any] = {
            "version": nexus.__version__,
            "origin": host.origin,
            "started_at": started,
            "uptime_s": round(time.monotonic() - monotonic, 3),
            "tenant": caller.tenant,
            "database": {"version": str(version), "kind": "external" if _is_external(host) else "embedded"},
            "node": await _capabilities(parts.driver),
            "gateways": server.gateways,
            "default_model": models.default_model,
            "deployments": {
                "wanted": sum(one.target is Target.RUNNING for one in mine),
                "instances": sum(len(records.get(one.id, [])) for one in mine),
                "ready": sum(
                    each.id in phases and phases[each.id].phase.value == "ready"
                    for one in mine
                    for each in records.get(one.id, [])
                ),
            },
        }
        return shown | ({"home": str(host.home.root)} if caller.may(Action.MANAGE_HOST) else {})

    return status


async def _capabilities(driver: process_driver.ProcessDriver) -> dict[str, Any]:
    try:
        found = await driver.capabilities()
    except errors.Unavailable as error:
        return {"name": "process", "reachable": False, "problem": error.message}
    return {
        "name": found.name,
        "reachable": True,
        "isolation": found.isolation,
        "limits_memory": found.limits_memory,
        "limits_cpu": found.limits_cpu,
        "missing": list(found.missing),
    }


def _settings_entry(environ: Mapping[str, str], default_model: str | None, unknown_model: str) -> feed.SettingsEntry:
    return {
        "hosts": _words(environ.get("NEXUS_ALLOWED_HOSTS", "")),
        "origins": _words(environ.get("NEXUS_ALLOWED_ORIGINS", "")),
        "default_model": default_model,
        "unknown_model": "refuse" if unknown_model == "refuse" else "default",
        "max_body_bytes": MAX_BODY_BYTES,
        "audit_content": control_audit.read_content_mode(environ),
    }


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _is_external(host: settings.HostSettings) -> bool:
    """The embedded server listens in the home's own run directory."""
    given = psycopg.conninfo.conninfo_to_dict(host.database_url or "").get("host")
    return not str(given or "").startswith(str(host.home.run))


def _spread(instance_id: str, gateways: int) -> int:
    """Which gateway's door an instance uses: always the same one."""
    return sum(instance_id.encode()) % max(1, gateways)


@contextlib.contextmanager
def _only_one(home: Home) -> Iterator[None]:
    """Two controls on one home would both reconcile; the second one waits for nothing and says so."""
    home.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home.run / "control.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise errors.Conflict(
                f"another control runs on {home.root}", code="control.running", next_step="see it with: nexus status"
            ) from error
        yield
