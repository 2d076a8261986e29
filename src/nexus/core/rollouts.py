"""How a revision takes over from the one before: its strategy (what was asked for) and its progress (how far it is).

`hosting.strategies` turns both into shares of traffic and numbers of instances; both are stored with the revision as JSON.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self


class StrategyKind(StrEnum):
    ROLLING = "rolling"
    BLUE_GREEN = "blue-green"
    CANARY = "canary"
    AB = "ab"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One arm of an A/B test: its share of the traffic in per cent, and the revision that serves it."""

    name: str
    version: str
    weight: int
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """When a difference counts: significant at `alpha` over all looks together, and larger than what is worth acting on.

    `error_margin` is a difference of error rates (0.02: two in a hundred); a latency counts when its median is `latency_ratio`
    times as long and at least `latency_margin_s` longer. Promotion needs `samples` runs of the new version.
    """

    alpha: float = 0.01
    samples: int = 20
    error_margin: float = 0.02
    latency_ratio: float = 1.25
    latency_margin_s: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """`max_surge` and `max_unavailable` are counts or per cent of the replicas (`25%`). `automatic`: promoted without a person.

    `keep_s` is for how long the old colour stays ready after a blue-green switch; `steps` are the canary's shares in per cent,
    each held for at least `interval_s`.
    """

    kind: StrategyKind = StrategyKind.ROLLING
    max_surge: str = "1"
    max_unavailable: str = "0"
    automatic: bool = True
    keep_s: float = 300.0
    steps: tuple[int, ...] = (10, 50, 100)
    interval_s: float = 60.0
    split_by: str = "session"
    variants: tuple[Variant, ...] = ()
    analysis: Analysis = field(default_factory=Analysis)

    def surge(self, replicas: int) -> int:
        """Per cent are rounded up, as Kubernetes does."""
        return _part(self.max_surge, replicas, math.ceil)

    def unavailable(self, replicas: int) -> int:
        """Per cent are rounded down; with no surge either, one instance must be given up for the rollout to move."""
        part = _part(self.max_unavailable, replicas, math.floor)
        return part if part or self.surge(replicas) else 1

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "steps": list(self.steps), "variants": [dataclasses.asdict(v) for v in self.variants]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> Self:
        given = _known(cls, value or {})
        if "kind" in given:
            given["kind"] = StrategyKind(given["kind"])
        given["steps"] = tuple(given.get("steps", cls.__dataclass_fields__["steps"].default))
        given["variants"] = tuple(Variant(**_known(Variant, one)) for one in given.get("variants", ()))
        given["analysis"] = Analysis(**_known(Analysis, given.get("analysis", {})))
        return cls(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a revision is. Times are seconds since the epoch. `since`: when the stage in hand began to serve, None before.

    `looks` and `looked_at` (runs of the new version then) spend the analysis' alpha. `decision` is what a person asked for.
    `standby` is the revision kept ready after a switch, until `standby_until`. `lead` is set on a further variant of an A/B
    test: the revision it belongs to. `outcome` says how it ended (`promoted`, `rolled back` …), by whom, why, with the numbers.
    `released`: its sessions were told to go on on what serves now.
    """

    stage: int = 0
    since: float | None = None
    started: float | None = None
    looks: int = 0
    looked_at: int = 0
    waiting: str = ""
    decision: str = ""
    decided_by: str = ""
    winner: int | None = None
    standby: int | None = None
    standby_until: float | None = None
    lead: int | None = None
    outcome: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    released: bool = False

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(dataclasses.replace(self, outcome=dict(self.outcome), numbers=dict(self.numbers)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> Self:
        return cls(**_known(cls, value or {}))


def _known(noun: Any, value: Mapping[str, Any]) -> dict[str, Any]:
    names = {entry.name for entry in dataclasses.fields(noun)}
    return {name: entry for name, entry in value.items() if name in names}


def _part(text: str, replicas: int, rounded: Any) -> int:
    if text.endswith("%"):
        return int(rounded(replicas * int(text[:-1]) / 100))
    return int(text)
