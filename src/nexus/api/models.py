"""`/v1/model-…`: where model calls may go (the host's), and what they may cost and did cost (a tenant's).

`/v1/models` itself is the gateways' door in OpenAI's shape.
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from nexus.api.access import Caller, Rooms
from nexus.core import errors, principals
from nexus.models import budgets, notices, spending
from nexus.ports import model_store as ports
from nexus.wire import models as wire
from nexus.wire import params, views
from nexus.wire.views import View

router = APIRouter(prefix="/v1", tags=["models"])

Name = Annotated[str, Path(max_length=200)]


class ProviderParams(params.Params):
    """`key` is stored encrypted and never shown; absent: the one that is stored stays."""

    provider: wire.Provider
    key: str | None = Field(default=None, max_length=4096)


class StopParams(params.Params):
    """`agent` null: every agent of the tenant."""

    agent: str | None = None
    reason: str = Field(default="", max_length=500)


class ModelSettings(View):
    """What is set about models. `source`: `api`, `models.yaml` or `environment`. Keys are never shown; where providers are, and
    what is wrong with them, to the host's admins only."""

    default: str | None
    unknown: str
    models: list[dict[str, Any]]
    providers: list[dict[str, Any]]
    routes: list[dict[str, Any]]
    prices: list[dict[str, Any]]
    problems: list[dict[str, Any]]


class RouteView(View):
    name: str
    route: wire.Route
    missing: list[str] = Field(description="Targets that are not known here")


class StopView(View):
    agent: str
    reason: str
    since: float
    by: str


class UsageRow(View):
    """`cost` in US dollars, of calls whose price is known; `unpriced` counts the others, `estimated` those whose tokens are."""

    group: str
    calls: int
    failed: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost: float
    unpriced: int
    estimated: int


class UsageView(View):
    since: float
    until: float
    by: str | None
    rows: list[UsageRow]
    total: UsageRow


@router.get("/model-settings", summary="Show providers, aliases and prices")
async def settings(caller: Caller, rooms: Rooms) -> ModelSettings:
    caller.require(principals.Action.READ)
    made = rooms.models.made
    hidden = {"headers", "auth"} if caller.may(principals.Action.MANAGE_HOST) else {"headers", "auth", "base_url", "key"}

    def source(kind: str, name: str) -> str:
        return str(made.sources.get((kind, name), "environment"))

    models = [
        {
            "model": name,
            "provider": entry["provider"],
            "dialects": entry["dialects"],
            "default": name == made.default_model,
            **{key: entry["options"][key] for key in ("context", "tags", "price") if key in (entry.get("options") or {})},
        }
        for name, entry in sorted(made.entries.items())
    ]
    return ModelSettings(
        default=made.default_model,
        unknown=made.unknown_model,
        models=models,
        providers=[
            {"name": name, "source": source("provider", name), **one.model_dump(mode="json", exclude=hidden)}
            for name, one in sorted(made.providers.items())
        ],
        routes=[{"name": name, "source": source("route", name), **route} for name, route in sorted(made.routes.items())],
        prices=[
            {"provider": provider, "model": model, "source": source("price", f"{provider}/{model}"), **price.model_dump()}
            for provider, of in sorted(made.prices.items())
            for model, price in sorted(of.items())
        ],
        problems=[
            {"code": one.code, "message": one.message, "cause": one.cause}
            for one in rooms.models.problems
            if caller.may(principals.Action.MANAGE_HOST)
        ],
    )


@router.put("/model-providers/{name}", summary="Set a provider", status_code=204)
async def put_provider(name: Name, caller: Caller, rooms: Rooms, body: ProviderParams) -> Response:
    """For the host's admins."""
    await rooms.models.put_provider(caller, name, body.provider, body.key)
    return Response(status_code=204)


@router.delete("/model-providers/{name}", summary="Remove a provider", status_code=204)
async def drop_provider(name: Name, caller: Caller, rooms: Rooms) -> Response:
    await rooms.models.drop(caller, "provider", name)
    return Response(status_code=204)


@router.put("/model-routes/{name:path}", summary="Set an alias")
async def put_route(name: Name, caller: Caller, rooms: Rooms, body: wire.Route) -> RouteView:
    """For the host's admins."""
    return RouteView(name=name, route=body, missing=await rooms.models.put_route(caller, name, body))


@router.delete("/model-routes/{name:path}", summary="Remove an alias", status_code=204)
async def drop_route(name: Name, caller: Caller, rooms: Rooms) -> Response:
    await rooms.models.drop(caller, "route", name)
    return Response(status_code=204)


@router.put("/model-prices/{provider}/{model:path}", summary="Set a price", status_code=204)
async def put_price(provider: Name, model: Name, caller: Caller, rooms: Rooms, body: wire.Price) -> Response:
    """In US dollars per million tokens; it holds before the provider's list price. For the host's admins."""
    await rooms.models.put_price(caller, provider, model, body)
    return Response(status_code=204)


@router.delete("/model-prices/{provider}/{model:path}", summary="Remove a price", status_code=204)
async def drop_price(provider: Name, model: Name, caller: Caller, rooms: Rooms) -> Response:
    await rooms.models.drop(caller, "price", f"{provider}/{model}")
    return Response(status_code=204)


@router.get("/model-budgets", summary="List budgets")
async def list_budgets(caller: Caller, rooms: Rooms) -> views.Page:
    """With what is used of those that have one counter."""
    return views.Page(items=await spending.Spending(rooms.models).list(caller))


@router.get("/model-budgets/{budget_id}", summary="Show a budget")
async def show_budget(budget_id: Name, caller: Caller, rooms: Rooms) -> dict[str, Any]:
    """With whom it warned lately."""
    return await spending.Spending(rooms.models).show(caller, budget_id)


@router.put("/model-budgets/{budget_id}", summary="Set a budget")
async def put_budget(budget_id: Name, caller: Caller, rooms: Rooms, body: wire.BudgetSpec) -> dict[str, Any]:
    """Gateways keep it from the next call on. What its period has used already counts."""
    return await spending.Spending(rooms.models).put(caller, budget_id, body)


@router.delete("/model-budgets/{budget_id}", summary="Remove a budget", status_code=204)
async def drop_budget(budget_id: Name, caller: Caller, rooms: Rooms) -> Response:
    await spending.Spending(rooms.models).drop(caller, budget_id)
    return Response(status_code=204)


@router.get("/model-notices", summary="List budget notices")
async def list_notices(caller: Caller, rooms: Rooms, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> views.Page:
    """Thresholds that were passed, newest first."""
    caller.require(principals.Action.READ)
    if caller.agents is not None:
        raise errors.Forbidden(
            f"key {caller.id} is for some agents only", next_step="ask for one budget's: GET /v1/model-budgets/ID"
        )
    found = await rooms.models.store.notices(caller.tenant, None, limit=limit)
    return views.Page(items=[notices.view(one) for one in found])


@router.get("/model-stops", summary="List stopped agents")
async def list_stops(caller: Caller, rooms: Rooms) -> views.Page:
    return views.Page(items=[_stop(one) for one in await rooms.models.stops(caller)])


@router.post("/model-stops", summary="Stop an agent's model calls")
async def stop(caller: Caller, rooms: Rooms, body: StopParams) -> StopView:
    """New calls are refused within a second, and those under way are cut."""
    return _stop(await rooms.models.stop(caller, body.agent, body.reason))


@router.delete("/model-stops/{agent}", summary="Let an agent's model calls go on", status_code=204)
async def resume(agent: Name, caller: Caller, rooms: Rooms) -> Response:
    """`*`: the whole tenant's."""
    await rooms.models.resume(caller, None if agent == "*" else agent)
    return Response(status_code=204)


@router.get("/model-usage", summary="Show what model calls used")
async def usage(
    caller: Caller,
    rooms: Rooms,
    since: Annotated[float, Query(description="Seconds since the epoch")],
    until: float | None = None,
    agent: str | None = None,
    environment: str | None = None,
    run_id: Annotated[str | None, Query(max_length=64)] = None,
    by: Literal["model", "provider", "agent", "environment", "user", "session", "run", "principal", "day"] | None = None,
) -> UsageView:
    """The dearest first (days in order)."""
    found = await spending.Spending(rooms.models).usage(
        caller, since=since, until=until, agent=agent, environment=environment, run_id=run_id, by=by
    )
    return UsageView(since=found.since, until=found.until, by=by, rows=[_row(one) for one in found.rows], total=_row(found.total))


def _stop(row: ports.StopRow) -> StopView:
    return StopView(agent=row.agent, reason=row.reason, since=row.since, by=row.by)


def _row(one: ports.UsageSum) -> UsageRow:
    return UsageRow(
        group=one.group,
        calls=one.calls,
        failed=one.failed,
        input_tokens=one.input_tokens,
        output_tokens=one.output_tokens,
        cached_tokens=one.cached_tokens,
        cost=budgets.shown(one.cost_nano, "cost"),
        unpriced=one.unpriced,
        estimated=one.estimated,
    )
