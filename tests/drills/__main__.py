"""`python -m tests.drills NAME …`: run one drill; its exit code is 1 when what was promised did not hold."""

import sys

from tests.drills import kill_storm

DRILLS = {"kill-storm": kill_storm.main}

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in DRILLS:
        sys.exit(f"drills: {', '.join(DRILLS)}; make drill without NAME runs the slow tests")
    sys.exit(DRILLS[name](sys.argv[2:]))
