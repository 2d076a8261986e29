"""Fixtures of the driver tests: real supervisors, one for a whole module or one for a test that kills it."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import supervisor_rig


@pytest.fixture
async def rig() -> AsyncIterator[supervisor_rig.SupervisorRig]:
    """A supervisor of the test's own, whose instances run the tests' plain worker."""
    async with supervisor_rig.started() as made:
        yield made
