"""The first program of an instance, started as `python -I -S box_main.py <descriptor>`: finds its own package and enters the box.

Nothing of the agent's runs, and no variable of the agent's is set, before the box is closed. See `box_entry`.
"""

import os
import sys


def main() -> None:
    folder = os.path.dirname(os.path.abspath(__file__))
    name = "nexus.drivers.process"
    while name:  # the packages above without what they import: half of this program's start
        package = type(sys)(name)
        package.__path__ = [folder]
        sys.modules[name] = package
        name, folder = name.rpartition(".")[0], os.path.dirname(folder)
    from nexus.drivers.process import box_entry

    box_entry.main(int(sys.argv[1]))


if __name__ == "__main__":
    main()
