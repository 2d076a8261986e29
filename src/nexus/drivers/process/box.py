"""The first program of an instance: limits itself, waits until it stands in its control group, then becomes the worker.

A script of its own, started as `python -I -S box.py <json>` so that nothing of the agent's runs before the limits hold.
The JSON: `{"go": fd, "limits": {"RLIMIT_CORE": [0, 0]}, "command": [...]}`; one byte on `go` means proceed.
"""

import ctypes
import json
import os
import resource
import sys

_PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    plan = json.loads(sys.argv[1])
    for name, (soft, hard) in plan["limits"].items():
        kind = getattr(resource, name)
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        sys.exit(71)
    if os.read(plan["go"], 1) != b"1":
        sys.exit(71)
    os.close(plan["go"])
    os.execv(plan["command"][0], plan["command"])  # noqa: S606 - replacing ourselves is the point


if __name__ == "__main__":
    main()
