"""`python -m tests.drills NAME …`: run one drill; its exit code is 1 when what was promised did not hold."""

import importlib
import subprocess
import sys

_TASKS = "tests/integration/tasks"
# What pytest runs: a dispatcher dies before and after every durable write; a dispatcher and a worker that were stopped and
# taken over wake up and try to write.
TESTS = {
    "crash-points": ("-m", "slow", f"{_TASKS}/test_crash_points.py"),
    "zombie": ("-k", "zombie or fenced", f"{_TASKS}/test_dispatcher_death.py", f"{_TASKS}/test_recordings.py"),
}
# Modules with a `main(arguments)`.
DRILLS = {
    "kill-storm": "kill_storm",
    "sessions": "sessions",
    "simulation": "simulation",
    "storage-faults": "storage_faults",
    "streams": "streams",
    "clock": "clocks",
    "webhook-abuse": "webhook_abuse",
}


def main(name: str, arguments: list[str]) -> int:
    if name in TESTS:
        return subprocess.run([sys.executable, "-m", "pytest", "-q", *TESTS[name], *arguments], check=False).returncode
    if name in DRILLS:
        return int(importlib.import_module(f"tests.drills.{DRILLS[name]}").main(arguments))
    print(f"drills: {', '.join((*DRILLS, *TESTS))}; make drill without NAME runs the slow tests", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:]))
