"""`python -m nexus.apps.dispatcher`: the entry of a dispatcher process; what it does is in `dispatcher_process`."""

import gc
import sys


def main() -> int:
    gc.disable()
    from nexus.apps import control

    control.leave_out_orm()
    from nexus.apps import dispatcher_process

    gc.enable()
    return dispatcher_process.main()


if __name__ == "__main__":
    sys.exit(main())
