"""Which version of a framework the agent brought: one this host was not tried with is run all the same, and the log says so."""

import importlib.metadata
import logging
import re

_LOG = logging.getLogger("nexus.worker")


def check(distribution: str, *, tried: str) -> None:
    """Warn when the installed `distribution` is of another series than `tried` (`"1.2"`: any 1.x; `"0.24"`: up to 0.24)."""
    try:
        installed = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        installed = ""
    if not installed:
        _LOG.warning(
            "the version of %s cannot be told; this host was tried with %s and runs it all the same", distribution, tried
        )
    elif not is_known(installed, tried):
        _LOG.warning(
            "%s %s is not a version this host was tried with (%s); it is run all the same", distribution, installed, tried
        )


def is_known(installed: str, tried: str) -> bool:
    """Same major version, and for 0.x no newer minor one. Pure."""
    here, there = _numbers(installed), _numbers(tried)
    if here[0] != there[0]:
        return False
    return here[0] > 0 or here[1] <= there[1]


def _numbers(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)(?:\.(\d+))?", version)
    return (int(found[1]), int(found[2] or 0)) if found else (-1, 0)
