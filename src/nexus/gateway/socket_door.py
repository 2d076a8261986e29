"""`GET /agents/{name}/ws`: a WebSocket to an instance, passed through."""

from nexus.gateway import http1
from nexus.gateway.runs_door import RunHandler
from nexus.gateway.upstream import BadAnswer


class SocketHandler(RunHandler):
    """Authenticated and counted as one streamed run while it is open."""

    def _idempotency_key(self, deployment_id: str) -> None:
        return None

    def _may_cache(self) -> bool:
        return False

    def request_head(self, framing: bytes) -> bytes:
        run = super().request_head(b"")
        named = self.call.head.named
        kept_lines = [
            line
            for line in run.split(b"\r\n")[1:-2]
            if not line.lower().startswith((b"accept: text/event-stream", b"sec-websocket-"))
        ]
        asked = [
            b"%b: %b" % (name, named[name])
            for name in (b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-protocol")
            if name in named
        ]
        upgrade = [b"Connection: Upgrade", b"Upgrade: websocket"]
        return b"\r\n".join([b"GET /ws HTTP/1.1", *kept_lines, *asked, *upgrade, b"", b""])

    def tunnel_headers(self, headers: list[http1.Header]) -> list[http1.Header]:
        """The subprotocol that the agent chose, and what we say ourselves. Extensions were not offered, so none may be taken."""
        if any(name == b"sec-websocket-extensions" for name, _ in headers):
            raise BadAnswer("it took a WebSocket extension that was not offered")
        chosen = [header for header in headers if header[0] == b"sec-websocket-protocol"]
        offered = {name.strip() for name in self.call.head.named.get(b"sec-websocket-protocol", b"").split(b",")}
        if len(chosen) > 1 or any(value not in offered for _, value in chosen):
            raise BadAnswer("it took a WebSocket subprotocol that was not offered")
        return chosen + self._ids()
