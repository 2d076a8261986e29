"""Put the sessions room together: the node's sessions, their past, and where a new one may live."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.core.phases import InstancePhase
from nexus.drivers.process import client as process_driver
from nexus.drivers.process import session_client
from nexus.hosting import service as hosting_service
from nexus.sessions import service as session_service
from nexus.stores.postgres import session_history


def build_sessions(
    database: AsyncEngine, hosting: hosting_service.HostingService, driver: process_driver.ProcessDriver
) -> session_service.SessionService:
    async def instances_of(tenant: str, agent: str, environment: str | None) -> Sequence[str]:
        statuses = hosting.statuses()
        found = []
        for one in await hosting.store.deployments_of(tenant, agent):
            if environment not in (None, one.environment):
                continue
            for instance in await hosting.store.instances(tenant, one.id):
                status = statuses.get(instance.id)
                if instance.revision == one.active_revision and status is not None and status.phase is InstancePhase.READY:
                    found.append(instance.id)
        return found

    return session_service.SessionService(
        node=session_client.ProcessSessions(driver),
        history=session_history.PostgresSessionHistory(database),
        instances_of=instances_of,
    )
