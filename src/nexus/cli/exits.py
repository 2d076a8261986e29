"""Exit codes: one for each kind of error, the same for every command."""

from collections.abc import Mapping
from typing import Final

from nexus.core import errors

OK: Final = 0
INTERRUPTED: Final = 130
CODES: Final[Mapping[str, int]] = {
    "internal": 1,
    "invalid": 2,
    "unauthenticated": 3,
    "forbidden": 4,
    "not_found": 5,
    "conflict": 6,
    "exhausted": 7,
    "agent_failed": 8,
    "unavailable": 9,
}


def code_of(error: errors.NexusError) -> int:
    return CODES.get(error.kind, 1)
