"""Answers of the gateway's own: problems, small JSON bodies, CORS. Pure: values in, bytes out."""

import json
import time
from collections.abc import Mapping

from nexus.core import errors
from nexus.gateway import http1, limits, model_errors
from nexus.gateway.call import Call, Door
from nexus.wire import problem

_DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_EXPOSED = b"Nexus-Run-Id, Nexus-Session-Id, Nexus-Version, Retry-After, RateLimit, RateLimit-Policy"
_ALLOWED_HEADERS = (
    b"Authorization, Content-Type, Accept, X-Api-Key, Nexus-Session-Id, Nexus-Environment, Idempotency-Key, traceparent, "
    b"Last-Event-ID"
)


def render_date(now: float) -> bytes:
    """RFC 9110's IMF-fixdate, whatever the locale (and without the weight of the `email` package)."""
    year, month, day, hour, minute, second, weekday, _, _ = time.gmtime(now)
    return b"%b, %02d %b %d %02d:%02d:%02d GMT" % (_DAYS[weekday], day, _MONTHS[month - 1], year, hour, minute, second)


def render(status: int, headers: list[http1.Header], body: bytes, *, close: bool, headless: bool = False) -> bytes:
    """A whole answer. `headless`: the request was HEAD, so only the length of the body is told."""
    fixed = [(b"Date", render_date(time.time())), (b"Cache-Control", b"no-store")]
    if status != 204:
        fixed.append((b"Content-Length", str(len(body)).encode()))
    if close:
        fixed.append((b"Connection", b"close"))
    return http1.render_head(status, headers + fixed) + (b"" if headless else body)


def render_json(value: Mapping[str, object], call: Call) -> tuple[list[http1.Header], bytes]:
    return [(b"Content-Type", b"application/json"), *cors(call)], json.dumps(value).encode() + b"\n"


def render_problem(error: errors.NexusError, call: Call | None) -> tuple[int, list[http1.Header], bytes]:
    """Status, headers and body of a typed error."""
    headers: list[http1.Header] = [(b"Content-Type", problem.CONTENT_TYPE.encode())]
    if isinstance(error, errors.Unauthenticated):
        headers.append((b"WWW-Authenticate", b'Bearer realm="nexus"'))
    if error.retry_after_s is not None:
        headers.append((b"Retry-After", str(max(1, round(error.retry_after_s))).encode()))
    if error.retry_after_s is None and problem.status_of(error) == 402:
        headers.append((b"x-should-retry", b"false"))  # what OpenAI's and Anthropic's SDKs go by
    if "allow" in error.extra:
        headers.append((b"Allow", str(error.extra["allow"]).encode()))
    if "accept_encoding" in error.extra:
        headers.append((b"Accept-Encoding", str(error.extra["accept_encoding"]).encode()))
    if call is not None:
        if call.run_id:
            headers.append((b"Nexus-Run-Id", call.run_id.encode("latin-1")))
        if call.session_given and call.session_id:
            headers.append((b"Nexus-Session-Id", call.session_id.encode("latin-1")))
        headers.extend(quota_headers(call))
        headers.extend(cors(call))
    run_id = call.run_id if call is not None else None
    if call is not None and call.match is not None and call.match.door is Door.MODEL:
        headers.append((b"Nexus-Error-Code", error.code.encode("ascii")))
        body = model_errors.render(error, anthropic=call.head.path.startswith(b"/v1/messages"), run_id=run_id)
    else:
        body = problem.encode(error, run_id=run_id)
    return problem.status_of(error), headers, body + b"\n"


def quota_headers(call: Call) -> list[http1.Header]:
    """What the caller has left of the tightest limit, when there is one."""
    if call.quota is None:
        return []
    return [tuple(line.split(b": ", 1)) for line in limits.render(*call.quota).splitlines()]  # type: ignore[misc]


def cors(call: Call) -> list[http1.Header]:
    if call.origin is None:
        return []
    return [
        (b"Access-Control-Allow-Origin", call.origin),
        (b"Access-Control-Expose-Headers", _EXPOSED),
        (b"Vary", b"Origin"),
    ]


def preflight(call: Call) -> list[http1.Header]:
    """What OPTIONS is told: everything for an allowed origin, the methods alone for anyone else."""
    methods = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
    if call.origin is None:
        return [(b"Allow", methods)]
    return [
        (b"Access-Control-Allow-Origin", call.origin),
        (b"Access-Control-Allow-Methods", methods),
        (b"Access-Control-Allow-Headers", _ALLOWED_HEADERS),
        (b"Access-Control-Max-Age", b"600"),
        (b"Vary", b"Origin"),
    ]
