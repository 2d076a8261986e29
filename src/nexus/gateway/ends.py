"""Why an instance went away in the middle of a run: the supervisor knows, so the caller hears the cause, not the symptom."""

import asyncio
import json
from pathlib import Path
from urllib.parse import quote

from nexus.core import errors
from nexus.kit import http1
from nexus.wire import problem

_WAIT_S = 1.0
_MOST_BYTES = 256 * 1024
_SHOWN = ("kind", "code", "detail", "phase", "cause", "next_step")


async def fetch_end(
    supervisor: Path, instance_id: str, *, since: float, session_id: str | None = None
) -> errors.NexusError | None:
    """The end after `since` (seconds since the epoch) of an instance, or of the worker that one of its sessions has for itself.
    None: there was none, or nobody can say. Takes a second at most."""
    try:
        async with asyncio.timeout(_WAIT_S + 0.5):
            reader, writer = await asyncio.open_unix_connection(supervisor)
            try:
                what = (
                    f"instances/{instance_id}" if session_id is None else f"sessions/{instance_id}/{quote(session_id, safe='')}"
                )
                path = f"/{what}/end?since={since:.3f}&wait_s={_WAIT_S}"
                writer.write(f"GET {path} HTTP/1.1\r\nHost: supervisor\r\nConnection: close\r\n\r\n".encode())
                answer = http1.AnswerStream(reader)
                await answer.head()
                told = json.loads(await answer.body(_MOST_BYTES)).get("problem")
            finally:
                writer.close()
    except (OSError, TimeoutError, http1.Broken, ValueError, AttributeError):
        return None
    if not isinstance(told, dict):
        return None
    shown = {name: told[name] for name in _SHOWN if name in told}  # not the log: whoever may run may not be one who may read it
    return problem.parse(shown)
