"""Fixtures of the task tests: a rig on a fresh database and a short folder for unix sockets."""

import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import rig as rigs


@pytest.fixture
def sockets() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="nxt-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def rig(postgres_url: str, sockets: Path) -> AsyncIterator[rigs.Rig]:
    async with rigs.open_rig(postgres_url, sockets) as made:
        yield made
