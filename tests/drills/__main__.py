"""`python -m tests.drills NAME …`: run one drill; its exit code is 1 when what was promised did not hold."""

import sys

import pytest

from tests.drills import clocks, kill_storm, sessions, simulation, storage_faults, streams, webhook_abuse


def crash_points(arguments: list[str]) -> int:
    """A dispatcher dies before and after every durable write."""
    return int(pytest.main(["-q", "-m", "slow", "tests/integration/tasks/test_crash_points.py", *arguments]))


def zombie(arguments: list[str]) -> int:
    """A dispatcher and a worker that were stopped and taken over wake up and try to write."""
    named = ["tests/integration/tasks/test_dispatcher_death.py", "tests/integration/tasks/test_recordings.py"]
    return int(pytest.main(["-q", "-k", "zombie or fenced", *named, *arguments]))


DRILLS = {
    "kill-storm": kill_storm.main,
    "sessions": sessions.main,
    "crash-points": crash_points,
    "zombie": zombie,
    "simulation": simulation.main,
    "storage-faults": storage_faults.main,
    "streams": streams.main,
    "clock": clocks.main,
    "webhook-abuse": webhook_abuse.main,
}

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in DRILLS:
        sys.exit(f"drills: {', '.join(DRILLS)}; make drill without NAME runs the slow tests")
    sys.exit(DRILLS[name](sys.argv[2:]))
