"""The worker's own calls through the platform's door: token usage of a run, and session state."""

import asyncio
import http.client
import json
import socket
from typing import Any

from nexus.core import errors
from nexus.kit import http_client, http_kept, session_tokens
from nexus.wire import problem

_TIMEOUT_S = 10.0
_PATIENCE_S = 2.0  # a gateway that was killed is there again within a second


class Door:
    """Calls on the unix socket `path` with the instance's token. Each raises `errors.Unavailable` when nobody answers.

    `session_id`: the session that the token is for, where each has a worker of its own.
    """

    def __init__(self, path: str, token: str) -> None:
        self.path = path
        self._kept = http_kept.Kept(path, patience_s=_PATIENCE_S)
        self.rebind(token)

    def rebind(self, token: str) -> None:
        """Another token from now on."""
        claims = session_tokens.parse(token)
        self.token = token
        self.session_id = None if claims is None else claims.session_id

    async def close(self) -> None:
        """Close the connections that the running loop keeps, before it ends."""
        self._kept.close()
        await asyncio.sleep(0)

    async def call(
        self, method: str, path: str, body: bytes = b"", *, content_type: str = "application/json"
    ) -> http_client.Answer:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", "Accept": "application/json"}
        try:
            return await self._kept.request(method, path, headers=headers, body=body, timeout_s=_TIMEOUT_S)
        except (OSError, TimeoutError, http_client.ProtocolError) as error:
            raise _unreachable(error) from error

    def call_blocking(
        self, method: str, path: str, body: bytes = b"", *, content_type: str = "application/json"
    ) -> http_client.Answer:
        """The same from a thread, or where no loop can be waited for."""
        connection = _UnixConnection(self.path)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", "Accept": "application/json"}
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return http_client.Answer(answer.status, [(key.lower(), value) for key, value in answer.getheaders()], answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(error) from error
        finally:
            connection.close()

    async def usage(self, run_id: str) -> tuple[int, int, float | None]:
        """Input and output tokens this gateway counted for the run, and what they cost in US dollars (None: not known)."""
        answer = await self.call("GET", f"/door/runs/{run_id}/usage")
        value = _object(answer)
        cost = value.get("cost")
        known = float(cost) if isinstance(cost, int | float) else None
        return int(value.get("input_tokens") or 0), int(value.get("output_tokens") or 0), known

    async def load_state(self, session_id: str) -> tuple[dict[str, Any], int | None]:
        """The state and its version (0: there is none yet; None: the host tells no versions)."""
        return _state(await self.call("GET", f"/door/sessions/{session_id}/state"))

    def load_state_blocking(self, session_id: str) -> tuple[dict[str, Any], int | None]:
        return _state(self.call_blocking("GET", f"/door/sessions/{session_id}/state"))

    async def save_state(self, session_id: str, state: bytes, *, after: int | None = None) -> int | None:
        """Its new version. `after`: only in place of this version (0: of none), or `Conflict` (`state.moved`)."""
        query = "" if after is None else f"?after={after}"
        answer = await self.call("PUT", f"/door/sessions/{session_id}/state{query}", state)
        if answer.status >= 300:
            raise _refused(answer)
        return _version(answer)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("door", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(self._path)


def _state(answer: http_client.Answer) -> tuple[dict[str, Any], int | None]:
    return ({}, 0) if answer.status == 404 else (_object(answer), _version(answer))


def _version(answer: http_client.Answer) -> int | None:
    found = next((value for name, value in answer.headers if name == "nexus-state-version"), "")
    return int(found) if found.isascii() and found.isdigit() else None


def _object(answer: http_client.Answer) -> dict[str, Any]:
    if answer.status >= 300:
        raise _refused(answer)
    try:
        value = json.loads(answer.body)
    except ValueError as error:
        raise _unreachable(error) from error
    if not isinstance(value, dict):
        raise _unreachable(TypeError("the answer is not an object"))
    return value


def _refused(answer: http_client.Answer) -> errors.NexusError:
    try:
        return problem.parse(json.loads(answer.body))
    except (ValueError, AttributeError):
        return errors.Unavailable(f"the platform's door answered {answer.status}", code="door.refused")


def _unreachable(error: Exception) -> errors.Unavailable:
    return errors.Unavailable(
        "the platform's door does not answer",
        code="door.unreachable",
        cause=f"{type(error).__name__}: {error}",
        next_step="nexus status shows whether the gateway runs",
    )
