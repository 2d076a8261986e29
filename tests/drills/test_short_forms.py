"""The drills in short, so that they do not rot between their full runs."""

import argparse
import shutil

import pytest

from tests.drills import clocks, simulation, storage_faults, streams, webhook_abuse


def test_simulation() -> None:
    for seed in (1, 2):
        first, second = simulation.simulate(seed), simulation.simulate(seed)
        assert first.problems == []
        assert first.trace == second.trace


@pytest.mark.slow
def test_webhook_abuse(postgres_url: str) -> None:
    assert webhook_abuse.drill(postgres_url, argparse.Namespace(abusive=100, healthy=5, tasks=30, seconds=3.0, seed=1)) == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="the faults are made by a small library that is compiled")
def test_storage_faults() -> None:
    assert storage_faults.main(["--rounds", "4", "--seed", "3"]) == 0


@pytest.mark.slow
def test_streams() -> None:
    assert streams.main(["--events", "300", "--kill", "1", "--seed", "3"]) == 0


@pytest.mark.slow
@pytest.mark.skipif(clocks.library() is None, reason="libfaketime is not there")
def test_clock() -> None:
    assert clocks.main(["--seconds", "1", "--seed", "3"]) == 0
