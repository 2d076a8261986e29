"""Composes the models room for the control process: the service, its notices, and what the feed tells of models."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.core.deployments import Target
from nexus.hosting import loop
from nexus.kit import clock as clocks
from nexus.kit import guard, home
from nexus.models import budgets, catalog, file, notices, service
from nexus.stores.postgres import model_store

BUDGET_OPTION = "budget"
"""Where `hosting.sizing` keeps what `hosting.budget` of a `config.yaml` says."""


@asynccontextmanager
async def run_models(
    engine: AsyncEngine,
    *,
    environ: Mapping[str, str],
    where: home.Home,
    key: bytes,
    post: notices.Post,
    publish: service.Publish,
) -> AsyncIterator[service.ModelService]:
    """Gateways have been told what is known when this yields. `key` (32 bytes) is the platform's own for providers' keys."""
    store, clock = model_store.PostgresModelStore(engine), clocks.SystemClock()
    telling = notices.Notices(store=store, post=post, clock=clock)
    room = service.ModelService(
        store=store,
        notices=telling,
        environ=environ,
        known=catalog.load_entries(environ, where),
        file_path=where.root / file.NAME,
        price_cache=where.root / "prices.json",
        key=key,
        publish=publish,
        clock=clock,
    )
    await room.start()
    async with guard.Loops() as loops:
        loops.start("models", room.run)
        loops.start("provider tokens", room.tokens.run)
        loops.start("budget notices", telling.run)
        yield room


def declared_in(picture: loop.Picture) -> list[budgets.Declared]:
    """The budgets in the `config.yaml` of what is deployed: of the revision that serves, or the one on its way."""
    found: list[budgets.Declared] = []
    for one in picture.deployments:
        if one.target is not Target.RUNNING:
            continue
        revision = picture.revisions.get((one.id, one.active_revision or one.target_revision or 0))
        given = revision.settings.options.get(BUDGET_OPTION) if revision is not None else None
        if given:
            found.extend(budgets.of_config(one.tenant, one.agent, one.environment, given))
    return found


class Sink:
    """Parts what gateways report: budget notices to the models room, the rest where it went before."""

    def __init__(self, further: Any) -> None:
        self._further = further
        self.room: service.ModelService | None = None

    async def store(self, records: Sequence[Any]) -> None:
        told = [one for one in records if isinstance(one, Mapping) and one.get("kind") == "budget"]
        if told and self.room is not None:
            await self.room.notices.take(told)
        await self._further([one for one in records if one not in told] if told else records)
