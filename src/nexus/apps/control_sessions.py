"""Put the sessions room together: the node's sessions, their past, and where a new one may live."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.apps import control_memory
from nexus.core.deployments import Target
from nexus.core.phases import InstancePhase
from nexus.drivers.process import client as process_driver
from nexus.drivers.process import session_client
from nexus.hosting import loop
from nexus.hosting import service as hosting_service
from nexus.ports import session_usage as ports_usage
from nexus.sessions import accounting
from nexus.sessions import service as session_service
from nexus.stores.postgres import session_history, session_usage
from nexus.telemetry import records


def build_forgetting(database: AsyncEngine, driver: process_driver.ProcessDriver) -> Callable[[str, str, str], Awaitable[None]]:
    """What goes with an agent's last instance in an environment: tenant, agent and environment to nothing."""
    node, memory = session_client.ProcessSessions(driver), control_memory.Memory(database)

    async def forget(tenant: str, agent: str, environment: str) -> None:
        await node.forget_sessions(tenant=tenant, agent=agent, environment=environment, session_id=None)
        await memory.forget_agent(tenant, agent, environment)

    return forget


def build_accounting(
    database: AsyncEngine,
    driver: process_driver.ProcessDriver,
    grown: Callable[[Sequence[ports_usage.Grown]], None],
) -> accounting.Accounting:
    return accounting.Accounting(
        node=session_client.ProcessSessions(driver), store=session_usage.PostgresUsageStore(database), grown=grown
    )


def build_run_traffic(driver: process_driver.ProcessDriver, reconciler: loop.Reconciler) -> records.Network:
    """What runs sent and received by themselves: instances with a way out are asked, for the others there is nothing to know."""
    node = session_client.ProcessSessions(driver)

    async def traffic(instance_id: str, run_ids: Collection[str]) -> Mapping[str, tuple[int, int]]:
        picture = reconciler.picture
        status = picture.statuses.get(instance_id)
        owned = picture.instances.get(status.deployment_id, []) if status is not None else []
        instance = next((one for one in owned if one.id == instance_id), None)
        revision = picture.revisions.get((instance.deployment_id, instance.revision)) if instance is not None else None
        if revision is None or revision.settings.options.get("network") != "egress":
            return {}
        return await node.run_traffic(instance_id, run_ids)

    return traffic


def build_sessions(
    database: AsyncEngine,
    hosting: hosting_service.HostingService,
    driver: process_driver.ProcessDriver,
    used: accounting.Accounting,
) -> session_service.SessionService:
    async def instances_of(tenant: str, agent: str, environment: str | None) -> session_service.Instances:
        statuses = hosting.statuses()
        found: list[str] = []
        homes: list[str] = []
        for one in await hosting.store.deployments_of(tenant, agent):
            if environment not in (None, one.environment):
                continue
            for instance in await hosting.store.instances(tenant, one.id):
                status = statuses.get(instance.id)
                if status is None or status.phase is not InstancePhase.READY:
                    continue
                if instance.target is Target.DRAINING:
                    homes.append(instance.id)
                elif instance.revision == one.active_revision:
                    found.append(instance.id)
        return session_service.Instances(new=found, homes=homes)

    return session_service.SessionService(
        forget=control_memory.Memory(database).forget_session,
        node=session_client.ProcessSessions(driver),
        history=session_history.PostgresSessionHistory(database),
        instances_of=instances_of,
        used=used,
    )
