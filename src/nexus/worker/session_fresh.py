"""What a forked worker must not share with its zygote and its siblings, made anew.

`random` reseeds itself and `logging`, `threading` and OpenTelemetry's processors mend their locks and threads, all by
`os.register_at_fork`, which the fork has honoured. What is left is here. Called once in the child, before a byte of a request.
"""

import os
import stat
import sys

_LARGEST_SEED = 2**32
_FIRST_OWN_PID = 300  # below it numbers are given in order, and a worker may have its zygote's


def refresh() -> None:
    _openssl()
    _numpy()
    _torch()
    _names()
    _files()


def _openssl() -> None:
    """OpenSSL knows a fork by its new process number and seeds itself again. Only where ours is no new one, it is told."""
    if (ssl := sys.modules.get("ssl")) is not None and os.getpid() < _FIRST_OWN_PID:
        ssl.RAND_add(os.urandom(32), 32.0)


def _numpy() -> None:
    """The generator behind `numpy.random.rand` and its like; a `Generator` that the author made has a seed of the author's."""
    if (numpy := sys.modules.get("numpy.random")) is not None and hasattr(numpy, "seed"):
        numpy.seed(int.from_bytes(os.urandom(4), "little") % _LARGEST_SEED)


def _torch() -> None:
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "seed"):
        torch.seed()


def _names() -> None:
    """Names of temporary files, and the clock sequence of time-based UUIDs."""
    if (tempfile := sys.modules.get("tempfile")) is not None:
        tempfile._name_sequence = None  # type: ignore[attr-defined]  # made anew on first use
    if (uuid := sys.modules.get("uuid")) is not None:
        uuid._last_timestamp = None  # type: ignore[attr-defined]


def _files() -> None:
    """A file that was left open for reading has one position for all who inherit it: open it again, at the same place."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number <= 2:
            continue
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                continue
            again = os.open(f"/proc/self/fd/{number}", os.O_RDONLY | os.O_CLOEXEC)
            os.lseek(again, os.lseek(number, 0, os.SEEK_CUR), os.SEEK_SET)
            os.dup2(again, number, inheritable=os.get_inheritable(number))
            os.close(again)
        except OSError:
            continue
