"""How many replicas the load asks for. Pure: samples in, a number out; `loop` samples and applies.

The rule is Kubernetes' horizontal autoscaler's: wanted = ceil(current × value / target), within 10 % nothing moves, up at once
(at most double or +4), down only to the most that was wanted during the last five minutes.
Source: https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/ (algorithm details)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nexus.core.deployments import Scaling

TOLERANCE = 0.1
STABILISE_DOWN_S = 300.0
DEFAULT_TARGET_CPU = 70
DEFAULT_TARGET_MEMORY = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at a deployment: means over its ready instances in per cent (None: not known), and tasks waiting in all."""

    at: float
    ready: int
    cpu: float | None = None
    memory: float | None = None
    queue_depth: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What one sample asked for, kept for as long as it holds the number up."""

    at: float
    replicas: int


def wish(scaling: Scaling, sample: Sample, current: int) -> int:
    """What this sample alone asks for; the highest over all metrics."""
    wishes = [
        _by_ratio(current, value, target)
        for value, target in ((sample.cpu, scaling.target_cpu), (sample.memory, scaling.target_memory))
        if value is not None and target is not None and sample.ready
    ]
    if scaling.target_queue_depth is not None and sample.queue_depth is not None:
        wishes.append(math.ceil(sample.queue_depth / scaling.target_queue_depth))
    return scaling.bounds.clamp(max(wishes, default=current))


def decide_replicas(now: float, scaling: Scaling, wishes: Sequence[Wish], current: int) -> int:
    """The number to have now. `wishes` reach back five minutes; `now` and their times are monotonic."""
    bounded = scaling.bounds.clamp(current)
    if not scaling.enabled or not wishes:
        return bounded
    if (latest := wishes[-1].replicas) > bounded:
        return scaling.bounds.clamp(min(latest, max(bounded * 2, bounded + 4)))
    held = [one.replicas for one in wishes if now - one.at <= STABILISE_DOWN_S]
    looked_long_enough = now - wishes[0].at >= STABILISE_DOWN_S * 0.9
    if looked_long_enough and held and (most := max(held)) < bounded:
        return scaling.bounds.clamp(most)
    return bounded


def _by_ratio(current: int, value: float, target: int) -> int:
    ratio = value / target
    return current if abs(ratio - 1) <= TOLERANCE else math.ceil(max(1, current) * ratio)
