"""The first program of an instance, started as `python -I -S box_main.py <module> <descriptor>`: finds its own package and enters
the box, or whatever the module of this package does.

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
    if sys.argv[1] == "oci_keeper":
        from nexus.drivers.process import oci_keeper

        oci_keeper.main(int(sys.argv[2]))
    from nexus.drivers.process import box_entry

    box_entry.main(int(sys.argv[2]))


if __name__ == "__main__":
    main()
