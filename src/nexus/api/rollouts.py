"""`/v1/agents/{name}/rollout`, `promote`, `abort`: where a rollout is, how its versions compare, and a person's word on it."""

from fastapi import APIRouter

from nexus.api.access import Caller, Rooms
from nexus.api.agents import Environment
from nexus.api.services import Services
from nexus.api.showing import show_deployment
from nexus.hosting import rollouts
from nexus.wire import params, views

router = APIRouter(prefix="/v1/agents", tags=["rollouts"])


def _verbs(rooms: Services) -> rollouts.RolloutService:
    return rollouts.RolloutService(rooms.hosting, rooms.hosting.samples)


@router.get("/{name}/rollout", summary="Show where a rollout is")
async def status(name: str, caller: Caller, rooms: Rooms, environment: Environment = None) -> views.RolloutView:
    """The one in hand, or how the last one ended."""
    return await _verbs(rooms).status(caller, name, environment)


@router.get("/{name}/rollout/report", summary="Compare the versions of a rollout")
async def report(name: str, caller: Caller, rooms: Rooms, environment: Environment = None) -> views.RolloutReport:
    """Error rates and latencies with confidence intervals, from the time the versions served together."""
    return await _verbs(rooms).report(caller, name, environment)


@router.post("/{name}/promote", summary="Promote the new version", status_code=202)
async def promote(name: str, caller: Caller, rooms: Rooms, body: params.PromoteParams) -> views.DeploymentView:
    """Switches colours, ends a canary or an A/B test: at once when every instance is ready, else then."""
    return await show_deployment(rooms, await _verbs(rooms).promote(caller, name, body.environment, body.variant))


@router.post("/{name}/abort", summary="Abort a rollout", status_code=202)
async def abort(name: str, caller: Caller, rooms: Rooms, body: params.AbortParams) -> views.DeploymentView:
    """All traffic to the version before; after a blue-green switch also while the old colour stands by."""
    return await show_deployment(rooms, await _verbs(rooms).abort(caller, name, body.environment))
