"""Sessions of this process: one run at a time, in the order of arrival, and the JSON object they share (`self.state`).

State is a transaction of its run: read when the run begins, written when it completed and changed it, forgotten when it
failed. Another instance may have served the session in between, so with a door it is read anew for every run. The only worker of
a session knows what it read or wrote itself a moment ago, and names that version when it writes.
"""

import asyncio
import json
import logging
import time
from collections import OrderedDict
from typing import Any

from nexus.core import errors
from nexus.worker import door as doors
from nexus.worker import outputs

_LOG = logging.getLogger("nexus.worker")
_KEPT = 10_000
_SURE_S = 60.0


class Session:
    """`saved` is the state as it was last read or written, as JSON; `unsaved` when the door could not take it yet. `version` is
    that of `saved` (None: not known), which is what the door has until `sure_until` (monotonic)."""

    __slots__ = ("_door", "id", "known", "live", "saved", "sure_until", "turn", "unsaved", "users", "version")

    def __init__(self, session_id: str, door: doors.Door | None) -> None:
        self.id = session_id
        self.turn = asyncio.Lock()
        self.users = 0
        self.saved = "{}"
        self.known = door is None
        self.unsaved = False
        self.live: dict[str, Any] | None = None
        self.version: int | None = None
        self.sure_until = 0.0
        self._door = door

    async def load(self) -> None:
        """Read the state for the run that begins now; runs side by side share what the first of them read."""
        if self.live is not None and self.users > 1:
            return
        if self._door is not None and not self.unsaved and not self._is_sure(self._door):
            try:
                self._take(*await self._door.load_state(self.id))
            except errors.NexusError as error:
                self._fall_back(error)
        self.live = json.loads(self.saved)

    def load_blocking(self) -> dict[str, Any]:
        """The same for code that touches `self.state` where nobody foresaw it."""
        if self.live is None:
            if self._door is not None and not self.unsaved and not self._is_sure(self._door):
                try:
                    self._take(*self._door.load_state_blocking(self.id))
                except errors.NexusError as error:
                    self._fall_back(error)
            self.live = json.loads(self.saved)
        return self.live

    async def keep(self) -> None:
        """Write what a completed run changed. Raises `AgentFailed` (not JSON) or the door's refusal (too large, moved)."""
        live = self.live
        if live is None:
            return
        if self.users == 1 or self.turn.locked():
            self.live = None
        changed = outputs.encode(live)
        if changed == self.saved and not self.unsaved:
            return
        if self._door is not None:
            alone, after, self.version = self.users == 1, self.version, None
            try:
                stored = await self._door.save_state(
                    self.id, changed.encode(), after=after if self._is_ours(self._door) else None
                )
                self.version, self.unsaved = stored if alone else None, False
            except errors.Unavailable as error:
                _LOG.error("session %s: its state is kept in memory until the door answers: %s", self.id, error.cause or error)
                self.unsaved = True
        self.saved, self.known, self.sure_until = changed, True, time.monotonic() + _SURE_S

    def forget(self) -> None:
        """Drop what a failed run changed."""
        self.live = None

    def _is_sure(self, door: doors.Door) -> bool:
        """Whether the door has what was last read or written here."""
        return self._is_ours(door) and self.version is not None and time.monotonic() < self.sure_until

    def _is_ours(self, door: doors.Door) -> bool:
        """Whether nobody else serves the session."""
        return door.session_id == self.id

    def _take(self, value: dict[str, Any], version: int | None) -> None:
        self.saved, self.known, self.version = outputs.encode(value), True, version
        self.sure_until = time.monotonic() + _SURE_S

    def _fall_back(self, error: errors.NexusError) -> None:
        if not self.known:
            raise errors.Unavailable(
                f"the state of session {self.id} cannot be read",
                code="state.unavailable",
                phase="run",
                cause=error.cause or error.message,
                next_step="try again; nexus status shows whether control runs",
            ) from error
        _LOG.warning("session %s: going on with the state last seen here: %s", self.id, error.cause or error)


class Sessions:
    """The sessions in use and the most recent others; the oldest idle ones are forgotten first."""

    def __init__(self, door: doors.Door | None, *, kept: int = _KEPT) -> None:
        self._door, self._kept = door, kept
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    async def foresee(self, session_id: str) -> None:
        """Read a session's state for the run that is to come."""
        session = self.enter(session_id)
        try:
            await session.load()
        finally:
            session.forget()
            self.leave(session)

    def enter(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            session = self._sessions[session_id] = Session(session_id, self._door)
            self._shrink()
        else:
            self._sessions.move_to_end(session_id)
        session.users += 1
        return session

    def leave(self, session: Session) -> None:
        session.users -= 1
        if not session.users and not session.known and not session.unsaved:
            self._sessions.pop(session.id, None)

    def _shrink(self) -> None:
        excess = len(self._sessions) - self._kept
        if excess > 0:
            idle = (key for key, session in self._sessions.items() if not session.users and not session.unsaved)
            for key in [key for key, _ in zip(idle, range(excess), strict=False)]:
                del self._sessions[key]
