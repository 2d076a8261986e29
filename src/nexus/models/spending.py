"""A tenant's budgets and what its model calls used: the verbs behind `nexus models budget` and `nexus models usage`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nexus.core import errors, principals
from nexus.kit import egress
from nexus.models import budgets, notices, service
from nexus.ports import model_store as ports
from nexus.wire import models as wire

GROUPS = ("model", "provider", "agent", "environment", "user", "session", "run", "principal", "day")
_LONGEST_S = 400 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """`rows` by group, the dearest first; `total` of all. Times are seconds since the epoch."""

    since: float
    until: float
    by: str | None
    rows: Sequence[ports.UsageSum]
    total: ports.UsageSum


class Spending:
    def __init__(self, room: service.ModelService) -> None:
        self._room = room

    async def put(self, caller: principals.Principal, budget_id: str, spec: wire.BudgetSpec) -> dict[str, Any]:
        """Raises `Invalid`; `Forbidden` for a key that is narrower than the budget."""
        _require(caller, spec)
        if spec.webhook is not None:
            _check_url(spec.webhook)
        service.check_name(budget_id, service.BUDGET_ID, "budget")
        row = ports.BudgetRow(
            tenant=caller.tenant,
            id=budget_id,
            value=spec.model_dump(mode="json", exclude_unset=True),
            updated_at=self._room.clock.time(),
            updated_by=caller.id,
        )
        await self._room.store.put_budget(row)
        await self._room.refresh()
        return await self.show(caller, budget_id)

    async def drop(self, caller: principals.Principal, budget_id: str) -> None:
        found = self._find(caller, budget_id)
        _require(caller, found.spec)
        if found.source != "api":
            raise errors.Conflict(
                f"the budget {budget_id} is set in {found.source}",
                code="models.from_file",
                next_step=f"delete it in {found.source}" + (" and deploy again" if found.source == "config.yaml" else ""),
            )
        await self._room.store.drop_budget(caller.tenant, budget_id)
        await self._room.refresh()

    async def list(self, caller: principals.Principal) -> list[dict[str, Any]]:
        caller.require(principals.Action.READ)
        return [
            await self._view(one) for one in self._room.declared if one.tenant == caller.tenant and _may_see(caller, one.spec)
        ]

    async def show(self, caller: principals.Principal, budget_id: str) -> dict[str, Any]:
        """The budget with what is used of it, and whom it warned."""
        caller.require(principals.Action.READ)
        found = self._find(caller, budget_id)
        told = await self._room.store.notices(caller.tenant, budget_id, limit=20)
        return await self._view(found) | {
            "notices": [notices.view(one) | {"webhook": one.status if one.url else None, "error": one.last_error} for one in told]
        }

    def _find(self, caller: principals.Principal, budget_id: str) -> budgets.Declared:
        for one in self._room.declared:
            if (one.tenant, one.id) == (caller.tenant, budget_id) and _may_see(caller, one.spec):
                return one
        raise errors.NotFound(
            f"there is no budget {budget_id[:64]!r}", code="budget.not_found", next_step="nexus models budget list"
        )

    async def _view(self, one: budgets.Declared) -> dict[str, Any]:
        """What is used is as recorded: gateways, which decide, know a second more and what is reserved."""
        spec = one.spec
        _, begins, ends = budgets.window_of(spec.period, self._room.clock.time())
        used = None
        if spec.scope in ("tenant", "agent") and (spec.scope == "tenant" or spec.agent is not None):
            agents = None if spec.agent is None else frozenset({spec.agent})
            which = ports.UsageFilter(tenant=one.tenant, since=begins, agents=agents, environment=spec.environment)
            used = budgets.shown(await self._room.store.spent(which, spec.unit), spec.unit)
        return {
            "id": one.id,
            "source": one.source,
            **spec.model_dump(mode="json"),
            "used": used,
            "left": None if used is None else max(0, spec.limit - used),
            "resets_at": ends,
        }

    async def usage(
        self,
        caller: principals.Principal,
        *,
        since: float,
        until: float | None = None,
        agent: str | None = None,
        environment: str | None = None,
        run_id: str | None = None,
        by: str | None = None,
    ) -> Usage:
        """Raises `Invalid` (`usage.invalid`) for a grouping or a time that cannot be."""
        caller.require(principals.Action.READ, agent=agent)
        now = self._room.clock.time()
        if by is not None and by not in GROUPS:
            raise errors.Invalid(
                f"usage cannot be shown by {by[:40]!r}", code="usage.invalid", next_step=f"one of {', '.join(GROUPS)}"
            )
        if caller.environment is not None and environment not in (None, caller.environment):
            raise errors.Forbidden(f"key {caller.id} is for the environment {caller.environment} only")
        if not now - _LONGEST_S <= since <= now + 86400:
            raise errors.Invalid("usage is kept for 400 days", code="usage.invalid", next_step="choose a later beginning")
        which = ports.UsageFilter(
            tenant=caller.tenant,
            since=since,
            until=until,
            agents=caller.agents if agent is None else frozenset({agent}),
            environment=environment or caller.environment,
            run_id=run_id,
        )
        total = (await self._room.store.usage(which, None))[0]
        rows = await self._room.store.usage(which, by) if by is not None else []
        return Usage(since=since, until=until or now, by=by, rows=rows, total=total)


def _check_url(url: str) -> None:
    """Where it leads is judged again at each call."""
    try:
        egress.parse_url(url)
    except ValueError as error:
        raise errors.Invalid(
            "this webhook cannot be called", code="webhook.invalid", cause=str(error), next_step="give an http(s) URL"
        ) from error


def _may_see(caller: principals.Principal, spec: wire.BudgetSpec) -> bool:
    return (caller.agents is None or spec.agent in caller.agents) and caller.environment in (None, spec.environment)


def _require(caller: principals.Principal, spec: wire.BudgetSpec) -> None:
    """A budget of the whole tenant is its admins' matter; one of an agent also of those who may deploy that agent."""
    if spec.agent is not None:
        caller.require(principals.Action.DEPLOY, agent=spec.agent)
        if caller.environment not in (None, spec.environment):
            raise errors.Forbidden(f"key {caller.id} is for the environment {caller.environment} only")
        return
    caller.require(principals.Action.DEPLOY)
    service.require_whole(caller)
