"""The state that runs of one session share, kept for the worker: read at a session's first run, written after a change."""

import json

from nexus.core import deployments, errors, names
from nexus.ports import session_store

MAX_STATE_BYTES = 1024 * 1024


class SessionStates:
    """Whose state it is follows from the instance that asks, never from what it says."""

    def __init__(self, *, store: session_store.SessionStore) -> None:
        self._store = store

    async def fetch(self, owner: deployments.InstanceOwner, session_id: str) -> session_store.SessionState:
        """The state, or `NotFound` (code `state.not_found`)."""
        found = await self._store.fetch(_key(owner, session_id))
        if found is None:
            raise errors.NotFound(f"session {session_id!r} has no state yet", code="state.not_found")
        return found

    async def put(self, owner: deployments.InstanceOwner, session_id: str, body: bytes, *, after: int | None = None) -> int:
        """The new version. `Invalid` when it is no JSON object (`state.invalid`) or too large (`state.too_large`); `Conflict`
        (`state.moved`) when `after` is not the version that it would replace."""
        key = _key(owner, session_id)
        if len(body) > MAX_STATE_BYTES:
            raise too_large()
        try:
            value = json.loads(body, parse_constant=_no_constant)
            text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
        except (ValueError, RecursionError) as error:
            raise errors.Invalid("a session's state is JSON", code="state.invalid", cause=str(error)[:200]) from None
        if not isinstance(value, dict):
            raise errors.Invalid("a session's state is a JSON object", code="state.invalid", cause=f"got {type(value).__name__}")
        return await self._store.put(key, text, after=after)


def too_large() -> errors.Invalid:
    return errors.Invalid(
        f"a session's state may have {MAX_STATE_BYTES} bytes",
        code="state.too_large",
        next_step="keep large things elsewhere and their address in the state",
    )


def _key(owner: deployments.InstanceOwner, session_id: str) -> session_store.SessionKey:
    if not names.is_session_id(session_id):
        raise errors.Invalid("this is not a session id", code="session.invalid_id")
    if owner.session_id not in (None, session_id):
        raise errors.Forbidden("a session's worker reaches its own state only", code="session.other", next_step="ask for its own")
    return session_store.SessionKey(tenant=owner.tenant, agent=owner.agent, environment=owner.environment, session_id=session_id)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
