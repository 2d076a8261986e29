"""The file the supervisor starts: `python -P <copy>/boot.py`. Standard library only, run outside the package.

`<copy>/lib` (ours) goes first and `<copy>/site` (uvicorn and friends) last, so that the agent's own versions win.
"""

import os
import sys


def arrange(path: list[str], copy: str) -> list[str]:
    """`sys.path` for the box; pure."""
    lib, site = os.path.join(copy, "lib"), os.path.join(copy, "site")
    return [lib, *(entry for entry in path if entry not in (lib, site, copy, "")), site]


def boot() -> None:
    sys.path[:] = arrange(sys.path, os.path.dirname(os.path.abspath(__file__)))
    from nexus.worker.main import main

    main()


if __name__ == "__main__":
    boot()
