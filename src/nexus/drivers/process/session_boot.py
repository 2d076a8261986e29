"""The program in a zygote's box: `python -P <copy>/session_boot.py`. Puts the session's box and the zygote together.

It lies in the worker copy beside `boot.py`. `NEXUS_ORDERS` is the number of the descriptor where the supervisor connects,
`NEXUS_SESSION_BOX` the plan of a session's box as JSON; with `alone` in it this is the worker of one session, not a zygote, with
`refusal` a zygote that forks nothing, for that reason, and with `handed` listening sockets are `worker.handed`'s.
"""

import json
import os
import sys
from typing import Any


class Boxing:
    """`worker.zygote.Boxing` over `box_session`."""

    def __init__(self, plan: dict[str, Any]) -> None:
        from nexus.drivers.process import box_session

        self._box = box_session
        self._plan = box_session.prepare(plan)
        self._ways: list[Any] = []
        self.isolated = bool(plan["isolated"])

    def fork(self) -> int:
        return self._box.fork(self._plan)

    def furnish(self) -> None:
        self._ways = self._box.furnish(self._plan)

    def close(self) -> None:
        self._box.close(self._plan)

    def serve_ways(self) -> None:
        if self._ways and os.fork() == 0:
            self._box.serve_ways(self._plan, self._ways)
        for way in self._ways:
            way[0].close()

    def be_private(self) -> None:
        self._box.be_private()

    def be_open(self) -> None:
        self._box.be_open()


def boot() -> None:
    folder = os.path.dirname(os.path.abspath(__file__))
    lib, site = os.path.join(folder, "lib"), os.path.join(folder, "site")
    sys.path[:] = [lib, *(entry for entry in sys.path if entry not in (lib, site, folder, "")), site]
    plan, orders = json.loads(os.environ.pop("NEXUS_SESSION_BOX")), int(os.environ.pop("NEXUS_ORDERS"))
    are_handed = bool(plan.get("handed"))
    if plan.get("alone"):
        from nexus.worker import session_alone

        session_alone.run(orders, isolated=bool(plan["isolated"]), are_handed=are_handed)
    from nexus.worker import zygote

    zygote.run(Boxing(plan), orders, refusal=plan.get("refusal"), are_handed=are_handed)


if __name__ == "__main__":
    boot()
