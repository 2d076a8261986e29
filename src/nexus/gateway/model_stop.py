"""The kill switch: while a stop stands, an agent's (or a whole tenant's) model calls are refused, and those under way are cut."""

from nexus.core import errors
from nexus.gateway.model_call import ModelCall
from nexus.gateway.world import World


def check(call: ModelCall, world: World) -> None:
    """Raises `Forbidden` (`model.stopped`)."""
    stops = world.table.stops
    if not stops:
        return
    for name in (f"{call.tenant}/{call.agent}" if call.agent else "", f"{call.tenant}/*"):
        stop = stops.get(name)
        if stop is not None:
            whose = f"agent {call.agent}" if not name.endswith("/*") else f"tenant {call.tenant}"
            raise errors.Forbidden(
                f"model calls of {whose} are stopped",
                code="model.stopped",
                cause=stop["reason"] or "somebody stopped them by hand",
                next_step=f"let them go on with: nexus models resume {'--agent ' + call.agent if whose[:1] == 'a' else '--all'}",
            )
