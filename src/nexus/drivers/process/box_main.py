"""The first program of an instance, started as `python -I -S box_main.py <descriptor>`: finds its own package and enters the box.

Nothing of the agent's runs, and no variable of the agent's is set, before the box is closed. See `box_entry`.
"""

import os
import sys


def main() -> None:
    here = os.path.abspath(__file__)
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(here)))))
    from nexus.drivers.process import box_entry

    box_entry.main(int(sys.argv[1]))


if __name__ == "__main__":
    main()
