"""What both transports share: how an httpx2 client is set up, a call becomes a request, and an exception becomes one of ours."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from nexus.client import calls, connection
from nexus.core import errors
from nexus.kit import tls

CONNECT_S = 5.0
DEFAULT_TIMEOUT_S = 60.0


def settings(found: connection.Connection) -> dict[str, Any]:
    """Arguments of `httpx2.Client` and `httpx2.AsyncClient`. A proxy is never asked for this machine's own addresses."""
    sent = {"User-Agent": "nexus-client", "Accept": "application/json"}
    if found.api_key:
        sent["Authorization"] = f"Bearer {found.api_key}"
    return {
        "base_url": found.base_url,
        "headers": sent,
        "trust_env": not found.is_local,
        "verify": _verification(found),
        "timeout": httpx2.Timeout(DEFAULT_TIMEOUT_S, connect=CONNECT_S),
    }


def _verification(found: connection.Connection) -> bool | ssl.SSLContext:
    """Whom to believe: the system's authorities, and for the host on this machine its own certificate. Raises `Invalid`."""
    if found.certificate is None:
        return found.base_url.startswith("https:")
    try:
        return tls.trusting(found.certificate)
    except OSError as error:
        raise errors.Invalid(
            f"the certificate of {found.base_url} cannot be read",
            code="url.invalid",
            cause=f"{found.certificate}: {error.strerror or error}",
            next_step="ask for the right to read it, or name the host in NEXUS_URL to go by the system's authorities",
        ) from error


def arguments(call: calls.Call, timeout_s: float) -> dict[str, Any]:
    """Arguments of `build_request` for a call."""
    body, sent = call.encode()
    limit = None if call.patient else call.timeout_s or timeout_s
    return {
        "method": call.method,
        "url": call.path,
        "params": {name: value for name, value in call.query.items() if value is not None},
        "headers": sent,
        "content": body,
        "timeout": httpx2.Timeout(limit, connect=CONNECT_S, pool=None),
    }


def reply(response: httpx2.Response, body: bytes) -> calls.Reply:
    return calls.Reply(
        status=response.status_code, headers={name.lower(): value for name, value in response.headers.items()}, body=body
    )


@contextmanager
def translated(found: connection.Connection) -> Iterator[None]:
    """Raises `Unavailable` or `Invalid` instead of what httpx2 raises."""
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise errors.Unavailable(
            f"no host answers at {found.base_url} ({found.source})",
            code="host.unreachable",
            cause=str(error) or type(error).__name__,
            next_step="nexus up" if found.is_local else "check the address and the network",
        ) from error
    except httpx2.TimeoutException as error:
        raise errors.Unavailable(
            f"the host at {found.base_url} took too long to answer",
            code="host.timeout",
            cause=type(error).__name__,
            next_step="nexus status" if found.is_local else "try again",
        ) from error
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise errors.Invalid(
            f"{found.base_url!r} cannot be called", code="url.invalid", cause=str(error), next_step="correct the address"
        ) from error
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        raise errors.Unavailable(
            f"the connection to {found.base_url} broke",
            code="host.connection_lost",
            cause=str(error) or type(error).__name__,
            next_step="try again",
        ) from error
