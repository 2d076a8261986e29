"""What one dispatcher may start without the queue."""

from nexus.ports.task_store import Lane
from nexus.tasks.settings import TaskSettings
from nexus.tasks.slots import Slots

ONE, TWO = (Lane(tenant="t", agent=agent, environment="production") for agent in ("one", "two"))


def test_every_limit_leaves_room_or_not() -> None:
    slots = Slots(TaskSettings(concurrency=3, per_lane=2, per_tenant=1000))
    assert slots.has_room(ONE)
    slots.take(ONE)
    slots.take(ONE)
    assert (slots.has_room(ONE), slots.has_room(TWO), slots.free) == (False, True, 1)
    slots.take(TWO)
    assert (slots.has_room(TWO), slots.free) == (False, 0)
    slots.give_back(ONE)
    assert (slots.has_room(ONE), slots.free) == (True, 1)


def test_dispatchers_share_limits_evenly() -> None:
    slots = Slots(TaskSettings(concurrency=100, per_lane=4, per_tenant=5), dispatchers=2)
    slots.take(ONE)
    slots.take(ONE)
    assert not slots.has_room(ONE), "the other two are for the other dispatcher"
    assert not slots.has_room(TWO), "half of five"
    slots.dispatchers = 1
    assert slots.has_room(ONE)
