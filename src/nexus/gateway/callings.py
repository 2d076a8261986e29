"""Versions that sessions wait for: control is asked to start an instance of each. Noted by `stages`, sent by `feed`."""

from collections.abc import Callable

_AGAIN_S = 1.0
_MOST = 1000


class Calls:
    """Each version is asked for once a second as long as somebody waits. `wanting` is called when there is one to send."""

    def __init__(self) -> None:
        self.wanting: Callable[[], None] = lambda: None
        self._noted: dict[tuple[str, str], float] = {}
        self._waiting: set[tuple[str, str]] = set()

    def note(self, deployment_id: str, version: str, now: float) -> None:
        key = (deployment_id, version)
        if now - self._noted.get(key, -_AGAIN_S) < _AGAIN_S:
            return
        if len(self._noted) >= _MOST:
            self._noted.clear()
        self._noted[key] = now
        self._waiting.add(key)
        self.wanting()

    def take(self) -> list[tuple[str, str]]:
        """Those to send now."""
        taken, self._waiting = list(self._waiting), set()
        return taken
