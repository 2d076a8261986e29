"""What goes to a provider and what of its answer comes back: headers, the host's credential in, everybody's private ones out."""

from nexus.gateway import http1, model_auth
from nexus.gateway.model_call import ModelCall

_PRIVATE = http1.HOP | {
    b"host", b"authorization", b"x-api-key", b"api-key", b"cookie", b"origin", b"referer", b"accept-encoding", b"forwarded",
    b"via", b"x-real-ip", b"openai-organization", b"openai-project", b"content-length", b"content-encoding", b"traceparent",
    b"tracestate", b"baggage",
}  # fmt: skip
_OTHERS = (b"x-forwarded", b"x-amz-")
_PROVIDERS_OWN = http1.HOP | {
    b"set-cookie", b"server", b"via", b"alt-svc", b"strict-transport-security", b"openai-organization", b"openai-project",
    b"anthropic-organization-id", b"cf-ray", b"cf-cache-status", b"nel", b"report-to",
}  # fmt: skip


def render_head(call: ModelCall, framing: bytes) -> bytes:
    """The request's head. `framing` is the ready Content-Length line."""
    head, target = call.call.head, call.target
    hop = http1.connection_names(head.named.get(b"connection"))
    given = target.entry["headers"] if target is not None and not target.translated else {}
    added = {name.lower().encode("latin-1"): text.encode("latin-1") for name, text in given.items()}
    host = target.host.encode("ascii") if target is not None else b"localhost"
    lines = [b"POST %b HTTP/1.1\r\nHost: %b\r\n" % (model_auth.render_target(call), host)]
    for name, value in head.headers:
        if name in _PRIVATE or name in hop or name in added or name[:5] == b"nexus" or name.startswith(_OTHERS):
            continue
        lines.append(b"%b: %b\r\n" % (name, value))
    lines.extend(b"%b: %b\r\n" % header for header in (*added.items(), *call.signed))
    lines.append(b"accept-encoding: identity\r\n")
    lines.append(framing)
    lines.append(b"\r\n")
    return b"".join(lines)


def render_own_head(call: ModelCall, framing: bytes) -> bytes:
    """The head of a request that the gateway makes itself, for several calls: nothing in it is a client's."""
    target = call.target
    given = target.entry["headers"] if target is not None else {}
    host = target.host.encode("ascii") if target is not None else b"localhost"
    lines = [b"POST %b HTTP/1.1\r\nHost: %b\r\n" % (model_auth.render_target(call), host)]
    lines.extend(b"%b: %b\r\n" % (name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in given.items())
    lines.extend(b"%b: %b\r\n" % header for header in call.signed)
    return b"".join([*lines, b"accept: application/json\r\naccept-encoding: identity\r\n", framing, b"\r\n"])


def clean_answer(headers: list[http1.Header]) -> list[http1.Header]:
    """The provider's headers that concern the client."""
    return [header for header in headers if header[0] not in _PROVIDERS_OWN]


def told(call: ModelCall) -> list[http1.Header]:
    """What the client is told about its call: which model answered, and what was changed on the way."""
    target = call.target
    found = [] if target is None else [(b"Nexus-Model", target.name.encode("latin-1", "replace"))]
    if call.capped:
        found.append((b"Nexus-Max-Tokens", b"%d" % call.capped))
    if call.trimmed:
        found.append((b"Nexus-Trimmed-Messages", b"%d" % call.trimmed))
    return found
