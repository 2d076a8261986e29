"""Read what a deployment view needs, in as few queries as it takes."""

from collections.abc import Sequence
from typing import Any

from nexus.api import render
from nexus.api.services import Services
from nexus.wire import views


async def show_deployment(rooms: Services, found: Any) -> views.DeploymentView:
    """The view of a `hosting.service.Deployed`."""
    one = found.deployment
    records = await rooms.hosting.store.instances(one.tenant, one.id)
    return render.render_deployment(one, found.revisions, records, rooms.hosting.statuses(), origin=rooms.origin)


async def show_deployments(rooms: Services, tenant: str, agent: str | None = None) -> Sequence[views.DeploymentView]:
    """All deployments of a tenant (or of one agent), production first."""
    records = await rooms.hosting.store.instances(tenant)
    views_ = []
    for one in await rooms.hosting.store.deployments_of(tenant, agent):
        mine = [record for record in records if record.deployment_id == one.id]
        revisions = await rooms.hosting.store.revisions(tenant, one.id)
        views_.append(render.render_deployment(one, revisions, mine, rooms.hosting.statuses(), origin=rooms.origin))
    return sorted(views_, key=lambda view: (view.agent, _RANK.get(view.environment, 9), view.environment))


_RANK = {"production": 0, "staging": 1, "development": 2}
