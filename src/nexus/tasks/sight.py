"""Who sees what of this room: a caller's agents and environment decide, for tasks, schedules and triggers alike. Pure."""

from typing import Protocol, TypeVar

from nexus.core import errors, principals
from nexus.ports import task_store


class Placed(Protocol):
    """A task, a schedule or a trigger of the caller's tenant."""

    @property
    def lane(self) -> task_store.Lane: ...


T = TypeVar("T", bound=Placed)


def sees(caller: principals.Principal, entry: Placed) -> bool:
    lane = entry.lane
    return (caller.agents is None or lane.agent in caller.agents) and caller.environment in (None, lane.environment)


def permit(caller: principals.Principal, entry: T | None, action: principals.Action, *, missing: errors.NotFound) -> T:
    """The entry, for one who sees it and may do this with its agent (`Forbidden` otherwise). To anybody else it is missing."""
    caller.require(principals.Action.READ)
    if entry is None or not sees(caller, entry):
        raise missing
    caller.require(action, agent=entry.lane.agent)
    return entry
