"""The real weights, pulled once into a folder that outlives the test run, so that a second run needs no network."""

import os
import tempfile
from pathlib import Path

import pytest

from nexus.core import errors
from nexus.kit import home as homes
from nexus.models import pull, weights


@pytest.fixture(scope="session")
def pulled_weights() -> Path:
    kept = Path(os.environ.get("NEXUS_TEST_MODELS") or Path(tempfile.gettempdir()) / f"nexus-test-models-{os.getuid()}")
    try:
        return pull.pull(homes.Home(kept), "smollm2")
    except errors.Unavailable as error:
        if error.code != "model.offline":
            raise
        pytest.skip(f"{error.message}: {error.cause}")


@pytest.fixture
def home(tmp_path: Path) -> homes.Home:
    return homes.Home(tmp_path)


@pytest.fixture
def home_with_weights(home: homes.Home, pulled_weights: Path) -> homes.Home:
    place = weights.path_of(home, "smollm2")
    place.parent.mkdir(parents=True)
    place.symlink_to(pulled_weights)
    return home
