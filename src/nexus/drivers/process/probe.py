"""One small HTTP/1.1 GET over a unix socket, for health and status of a worker. Trusts nothing that comes back."""

import asyncio
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)
_MOST = 256 * 1024
_MOST_RUNS = 4
_ID = re.compile(r"[A-Za-z0-9._:@-]{1,256}")


async def get(socket: Path, path: str, *, timeout_s: float) -> tuple[int, bytes]:
    """Status and body. Raises OSError or TimeoutError when there is no whole answer in time."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_unix_connection(str(socket), limit=_MOST)
        try:
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: instance\r\nConnection: close\r\nAccept: application/json\r\n\r\n".encode()
            )
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            match = _STATUS.match(head)
            if match is None:
                raise ConnectionError("the answer is not HTTP")
            length = _LENGTH.search(head)
            body = await reader.readexactly(min(int(length[1]), _MOST)) if length else await reader.read(_MOST)
            return int(match[1]), body
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise ConnectionError("the answer ended early or is too long") from error
        finally:
            writer.close()


async def is_healthy(socket: Path, path: str, *, timeout_s: float) -> str | None:
    """None when `GET path` answers 2xx in time, else the reason in words."""
    try:
        status, _ = await get(socket, path, timeout_s=timeout_s)
    except TimeoutError:
        return f"GET {path} was not answered within {timeout_s:g} s"
    except OSError as error:
        return f"GET {path} failed: {error.strerror or error}"
    return None if 200 <= status < 300 else f"GET {path} answered {status}"


async def active_runs(socket: Path, *, timeout_s: float) -> int | None:
    """How many runs the worker says it has in hand; None when it cannot be asked."""
    return (await activity(socket, timeout_s=timeout_s))[0]


async def activity(socket: Path, *, timeout_s: float) -> tuple[int | None, float | None]:
    """How many runs the worker says it has in hand, and when (Unix seconds) it was last busy; None for what it does not tell."""
    told = await _status(socket, timeout_s=timeout_s)
    count, at = told.get("active_runs"), told.get("last_activity")
    return (
        count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None,
        float(at) if isinstance(at, int | float) and not isinstance(at, bool) and math.isfinite(at) and at >= 0 else None,
    )


async def runs_in_hand(socket: Path, *, timeout_s: float) -> list[tuple[str, str]]:
    """`(run, session)` of each run the worker says it has in hand, the first few; none when it cannot be asked."""
    runs = (await _status(socket, timeout_s=timeout_s)).get("runs")
    found = []
    for run in runs[:_MOST_RUNS] if isinstance(runs, list) else ():
        pair = (run.get("run_id"), run.get("session_id")) if isinstance(run, Mapping) else (None, None)
        if all(isinstance(part, str) and _ID.fullmatch(part) for part in pair):
            found.append((str(pair[0]), str(pair[1])))
    return found


async def _status(socket: Path, *, timeout_s: float) -> Mapping[str, object]:
    try:
        status, body = await get(socket, "/status", timeout_s=timeout_s)
        value = json.loads(body) if status == 200 else None
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, Mapping) else {}
