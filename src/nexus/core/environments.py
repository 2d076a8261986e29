"""Environments and the replica bounds each one brings (document 1, table "Environments")."""

import re
from dataclasses import dataclass

from nexus.core import errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many replicas a deployment may have, both ends included."""

    minimum: int
    maximum: int

    def clamp(self, replicas: int) -> int:
        return max(self.minimum, min(self.maximum, replicas))


DEFAULT_BOUNDS = {
    "development": Bounds(minimum=1, maximum=1),
    "staging": Bounds(minimum=1, maximum=3),
    "production": Bounds(minimum=2, maximum=10),
}


_SCRATCH = re.compile(r"replay-[0-9a-f]{8}")
_ONE = Bounds(minimum=1, maximum=1)


def is_scratch(environment: str) -> bool:
    """Whether it was made for one replay. Such an environment is never meant by who names none."""
    return _SCRATCH.fullmatch(environment) is not None


def default_bounds(environment: str) -> Bounds:
    """The bounds of a known environment, or `NotFound` (code `environment.unknown`) naming those that exist."""
    if is_scratch(environment):
        return _ONE
    try:
        return DEFAULT_BOUNDS[environment]
    except KeyError:
        known = ", ".join(DEFAULT_BOUNDS)
        raise errors.NotFound(
            f"there is no environment {environment!r}",
            code="environment.unknown",
            cause=f"the environments are {known}",
            next_step="pass --env with one of them",
        ) from None
