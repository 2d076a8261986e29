"""Fetches providers' short-lived tokens, by a command on this machine or from a token service, and again before they end.

Nothing is logged of what was printed or answered but its shape. A token that cannot be renewed stays in use until it ends.
"""

import asyncio
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote_plus

from nexus.core import errors
from nexus.kit import clock as clocks
from nexus.kit import egress, http1
from nexus.models.provider_auth import Auth, ClientCredentials, Read, Token

_LOG = logging.getLogger(__name__)
_TIMEOUT_S = 30.0
_MOST_BYTES = 64 * 1024
_RETRY_S = 5.0
_EARLY = 0.8
_OWN = ("NEXUS_", "OPENAI_API_KEY", "ANTHROPIC_API_KEY")
_EXPIRES_IN = ("expires_in", "expiresIn")
_EXPIRES_AT = ("expires_on", "expires_at", "expiresOn", "expiry", "Expiration")
_BEARER = ("access_token", "accessToken", "token")
_AWS = {"AccessKeyId": "access_key", "SecretAccessKey": "secret_key", "SessionToken": "session_token"}


@dataclass(slots=True)
class _Held:
    auth: Auth
    read: Read
    token: Token | None = None
    due_at: float = 0.0
    failures: int = 0


class ProviderTokens:
    """`want` says who needs a token, `find` gives the one there is; `run` fetches, and calls `changed` for each new one."""

    def __init__(self, *, changed: Callable[[], None], environ: Mapping[str, str], clock: clocks.Clock) -> None:
        self._changed = changed
        self._environ = environ
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._woken = asyncio.Event()

    def want(self, providers: Mapping[str, tuple[Auth, Read]]) -> None:
        """All that need one; others are forgotten."""
        kept = {name: held for name, held in self._held.items() if name in providers and held.auth == providers[name][0]}
        self._held = {name: kept.get(name) or _Held(auth, read) for name, (auth, read) in providers.items()}
        self._woken.set()

    def find(self, name: str) -> Token | None:
        held = self._held.get(name)
        if held is None or held.token is None or held.token.expires_at <= self._clock.time():
            return None
        return held.token

    async def run(self) -> None:
        while True:
            wait_s = await self.look()
            self._woken.clear()
            try:
                async with asyncio.timeout(None if wait_s == math.inf else max(0.05, wait_s)):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def look(self) -> float:
        """Fetch what is due; how long until something is due again."""
        for name, held in list(self._held.items()):
            if held.due_at <= self._clock.monotonic():
                await self._renew(name, held)
        return min((held.due_at - self._clock.monotonic() for held in self._held.values()), default=math.inf)

    async def _renew(self, name: str, held: _Held) -> None:
        now = self._clock.time()
        try:
            held.token = await fetch(held.auth, held.read, environ=self._environ, now=now)
        except errors.NexusError as error:
            held.failures += 1
            held.due_at = self._clock.monotonic() + min(300.0, _RETRY_S * 2 ** min(held.failures - 1, 8))
            _LOG.warning("there is no new token for provider %s: %s (%s)", name, error.message, error.cause)
            return
        held.failures = 0
        held.due_at = self._clock.monotonic() + max(1.0, _EARLY * (held.token.expires_at - now))
        _LOG.info("provider %s has a new token for %.0f s", name, held.token.expires_at - now)
        self._changed()


async def fetch(auth: Auth, read: Read, *, environ: Mapping[str, str], now: float) -> Token:
    """Raises `Unavailable` (`provider.token_missing`) or `Invalid`; neither holds anything secret."""
    if auth.oauth is not None:
        return parse_token(await _ask(auth.oauth, read), refresh_s=auth.refresh, now=now)
    return parse_token(await _run(auth.command or [], environ), refresh_s=auth.refresh, now=now)


async def _run(command: list[str], environ: Mapping[str, str]) -> bytes:
    """What the command prints. It gets this process' environment without what is the host's own."""
    kept = {name: value for name, value in environ.items() if not name.startswith(_OWN)}
    # A pipe of our own: asyncio's would keep a killed child waiting for output that nobody reads.
    reading, writing = os.pipe()
    try:
        child = await asyncio.create_subprocess_exec(
            *command,
            env={"PATH": os.defpath, **kept},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=writing,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        os.close(reading)
        raise _missing("its command cannot be started", f"{command[0]}: {error.strerror}") from error
    finally:
        os.close(writing)
    reader = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", buffering=0)
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            printed = b""
            while len(printed) <= _MOST_BYTES and (piece := await reader.read(_MOST_BYTES)):
                printed += piece
            pipe.close()
            status = await child.wait() if len(printed) <= _MOST_BYTES else 0
    except TimeoutError:
        raise _missing("its command did not end in time", f"{_TIMEOUT_S:g} s") from None
    finally:
        pipe.close()
        if child.returncode is None:
            child.kill()
            await child.wait()
    if status:
        raise _missing("its command failed", f"exit code {status}")
    return printed


async def _ask(oauth: ClientCredentials, read: Read) -> bytes:
    target = egress.parse_url(oauth.url)
    fields = {
        "grant_type": "client_credentials", "client_id": oauth.client_id, "client_secret": read(oauth.client_secret),
        "scope": oauth.scope,
    }  # fmt: skip
    body = "&".join(f"{name}={quote_plus(value)}" for name, value in fields.items()).encode()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            answer = await http1.post(
                [target.host],
                port=target.port,
                server_name=target.host if target.scheme == "https" else None,
                path=target.path,
                fields={
                    "Host": target.authority,
                    "Content-Type": "application/x-www-form-urlencoded",
                    "Accept": "application/json",
                },
                body=body,
                max_answer=_MOST_BYTES,
            )
    except (OSError, TimeoutError, http1.Broken) as error:
        raise _missing("its token service does not answer", type(error).__name__) from error
    if answer.status != 200:
        raise _missing("its token service refused", f"{answer.status}, {_error_of(answer.body)}")
    return answer.body


def parse_token(printed: bytes, *, refresh_s: float, now: float) -> Token:
    """A token as the well-known programs print it; without a word on its end it lasts `refresh_s`."""
    text = printed.decode("utf-8", "replace").strip()
    value: Any = None
    if text.startswith("{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise _missing("what came is no token", "it is not JSON") from None
    if value is None:
        return Token(bearer=_checked(text), expires_at=now + refresh_s)
    ends = _end_of(value, now) or now + refresh_s
    if "AccessKeyId" in value:
        return Token(
            aws={ours: _checked(str(value[theirs])) for theirs, ours in _AWS.items() if value.get(theirs)}, expires_at=ends
        )
    for name in _BEARER:
        if isinstance(value.get(name), str):
            return Token(bearer=_checked(value[name]), expires_at=ends)
    raise _missing("what came is no token", f"it has none of {', '.join(_BEARER)}")


def _end_of(value: Mapping[str, Any], now: float) -> float | None:
    """When it ends, if it is still to come."""
    found: float | None = None
    for name in _EXPIRES_IN:
        if isinstance(value.get(name), int | float | str) and not isinstance(value[name], bool):
            found = now + _number(value[name])
    for name in _EXPIRES_AT:
        given = value.get(name)
        if found is None and isinstance(given, int | float) and not isinstance(given, bool):
            found = float(given)
        elif found is None and isinstance(given, str):
            found = _moment(given)
    return found if found is not None and math.isfinite(found) and found > now else None


def _number(given: float | str) -> float:
    try:
        return float(given)
    except ValueError:
        return math.nan


def _moment(given: str) -> float:
    if not math.isnan(seconds := _number(given)):
        return seconds
    try:
        return datetime.fromisoformat(given).timestamp()
    except (ValueError, OverflowError, OSError):
        return math.nan


def _checked(token: str) -> str:
    if not token or len(token) > 16_384 or not (token.isascii() and token.isprintable() and " " not in token):
        raise _missing("what came is no token", "it is empty, too long, or holds characters that no token has")
    return token


def _error_of(body: bytes) -> str:
    """OAuth's short error code, and nothing else of the answer."""
    try:
        found = json.loads(body).get("error")
    except (ValueError, AttributeError, RecursionError):
        return "without an OAuth error"
    return found[:64] if isinstance(found, str) and found.replace("_", "").isalnum() else "without an OAuth error"


def _missing(message: str, cause: str) -> errors.Unavailable:
    return errors.Unavailable(message, code="provider.token_missing", cause=cause, next_step="try the command or service by hand")
