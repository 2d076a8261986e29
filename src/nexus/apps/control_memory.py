"""What sessions keep in the database beside their runs (the state of `self.state`, the threads of graphs), forgotten together."""

from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.ports import checkpoint_store as checkpoint_port
from nexus.ports import session_store as session_port
from nexus.ports import task_store
from nexus.stores.postgres import checkpoint_store, session_store


class Memory:
    def __init__(self, database: AsyncEngine) -> None:
        self._states = session_store.PostgresSessionStore(database)
        self._threads = checkpoint_store.PostgresCheckpointStore(database)

    async def forget_session(self, tenant: str, agent: str, environment: str, session_id: str) -> bool:
        """Whether there was any."""
        lane = task_store.Lane(tenant=tenant, agent=agent, environment=environment)
        key = session_port.SessionKey(tenant=tenant, agent=agent, environment=environment, session_id=session_id)
        threads = await self._threads.delete(checkpoint_port.Thread(lane=lane, id=session_id))
        return await self._states.delete(key) or threads

    async def forget_agent(self, tenant: str, agent: str, environment: str | None) -> None:
        """Of all its sessions, in one environment or in all."""
        await self._threads.delete_agent(tenant, agent, environment=environment)
        await self._states.delete_agent(tenant, agent, environment=environment)
