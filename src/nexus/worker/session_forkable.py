"""Whether a process may be forked into session workers: asked after the author's code was imported.

A thread does not survive a fork, and whatever lock it held stays locked for ever; a socket, an epoll or a shared mapping would be
one and the same thing in every session. What cannot be forked is never forked: its sessions are then started from the beginning.
"""

import os
import stat
import threading
import time
from collections.abc import Collection

_HARMLESS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_MOST_NAMED = 4
_LEAVING_S, _LEAVING_LOOKS = 0.01, 200


def find_reason(*, own: Collection[int]) -> str | None:
    """None when nothing speaks against it, else why not, in words. `own` are descriptors of ours that are taken care of."""
    return _threads() or _children() or _descriptors(frozenset(own)) or _mappings()


def descriptors() -> frozenset[int]:
    """Those that are open now."""
    listed = [int(name) for name in os.listdir("/proc/self/fd")]
    return frozenset(number for number in listed if os.path.lexists(f"/proc/self/fd/{number}"))  # without the listing's own


def _threads() -> str | None:
    if names := [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]:
        return f"{_many(len(names), 'thread')} started{_named(names)}"
    count = len(os.listdir("/proc/self/task"))
    patience = _LEAVING_LOOKS
    while count > 1 and patience:  # one that Python has seen off may still be on its way out
        time.sleep(_LEAVING_S)
        count, patience = len(os.listdir("/proc/self/task")), patience - 1
    return f"{_many(count - 1, 'thread')} started" if count > 1 else None


def _children() -> str | None:
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:
            count = len(file.read().split())
    except OSError:  # a kernel without this file
        return None
    return f"{_many(count, 'process')} started" if count else None


def _descriptors(own: frozenset[int]) -> str | None:
    found = []
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number <= 2 or number in own:
            continue
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
            mode = os.fstat(number).st_mode
        except OSError:  # the descriptor of the listing itself
            continue
        if target in _HARMLESS or (stat.S_ISREG(mode) and not _writes(number)) or stat.S_ISDIR(mode):
            continue
        found.append(target if len(target) < 60 else target[:57] + "...")
    return f"{_many(len(found), 'file')} or socket left open{_named(found)}" if found else None


def _writes(number: int) -> bool:
    with open(f"/proc/self/fdinfo/{number}") as file:
        flags = next((line.split()[1] for line in file if line.startswith("flags:")), "02")
    return int(flags, 8) & 3 != os.O_RDONLY


def _mappings() -> str | None:
    with open("/proc/self/maps") as file:
        found = [line.split(None, 5)[-1].strip() for line in file if line.split(" ", 2)[1][1:4:2] == "ws"]
    return f"memory that processes share{_named(found)}" if found else None


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("es" if what.endswith("s") else "s") * (count != 1)


def _named(names: list[str]) -> str:
    if not names:
        return ""
    return f" ({', '.join(names[:_MOST_NAMED])}{', …' if len(names) > _MOST_NAMED else ''})"
