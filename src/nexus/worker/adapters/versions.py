"""Which version of a framework the agent brought: one this host was not tried with is run all the same, and the agent's log and
`nexus ai agent show` say so."""

import importlib
import logging
import re

_LOG = logging.getLogger("nexus.worker")
_NOTES: list[str] = []


def check(distribution: str, *, tried: str) -> None:
    """Note when the installed `distribution` is of another series than `tried` (`"1.2"`: any 1.x; `"0.24"`: up to 0.24)."""
    metadata = importlib.import_module("importlib.metadata")  # 10 ms, which agents without a framework need not spend
    try:
        installed = str(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        installed = ""
    if not installed:
        _note(f"the version of {distribution} cannot be told; this host was tried with {tried} and runs it all the same")
    elif not is_known(installed, tried):
        _note(f"{distribution} {installed} is not a version this host was tried with ({tried}); it is run all the same")


def noted() -> str:
    """What `check` had to say in this process; empty when every version is known."""
    return "; ".join(_NOTES)


def is_known(installed: str, tried: str) -> bool:
    """Same major version, and for 0.x no newer minor one. Pure."""
    here, there = _numbers(installed), _numbers(tried)
    if here[0] != there[0]:
        return False
    return here[0] > 0 or here[1] <= there[1]


def _note(text: str) -> None:
    _LOG.warning("%s", text)
    if text not in _NOTES:
        _NOTES.append(text)


def _numbers(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)(?:\.(\d+))?", version)
    return (int(found[1]), int(found[2] or 0)) if found else (-1, 0)
