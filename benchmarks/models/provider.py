"""A scripted provider that costs next to nothing: streams of chat completions, each event in a write of its own.

    python benchmarks/models/provider.py PORT [EVENTS]

Every connection that streams gets one event a turn of the loop, all connections in turn, so that a reader sees single events and
not a whole answer at once. Requests without `"stream":true` get one small answer. Started by `benchmarks/models/run.py`.
"""

import asyncio
import json
import sys

import uvloop

CHUNK = {
    "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "fast",
    "choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}],
}  # fmt: skip
USAGE = {**CHUNK, "choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 100, "total_tokens": 200}}
WHOLE = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000, "model": "fast",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 60}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 60, "total_tokens": 160},
}  # fmt: skip
BODY = json.dumps(WHOLE).encode()
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(value: object) -> bytes:
    event = b"data: " + json.dumps(value).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


EVENT, LAST = chunk(CHUNK), chunk(USAGE) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Provider(asyncio.Protocol):
    events = 100
    streaming: "set[Provider]" = set()
    ticking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.data, self.left = transport, b"", 0

    def data_received(self, data: bytes) -> None:
        self.data += data
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.data[:end].lower()
        at = head.find(b"content-length:")
        size = int(head[at + 15 :].split(b"\r\n")[0]) if at >= 0 else 0
        if len(self.data) < end + 4 + size:
            return
        body, self.data = self.data[end + 4 : end + 4 + size], self.data[end + 4 + size :]
        if b'"stream":true' not in body and b'"stream": true' not in body:
            self.transport.write(ANSWER)
            return
        self.transport.write(HEAD)
        self.left = self.events
        self.streaming.add(self)
        if not Provider.ticking:
            Provider.ticking = True
            asyncio.get_running_loop().call_soon(tick)

    def connection_lost(self, error: Exception | None) -> None:
        self.streaming.discard(self)


def tick() -> None:
    for one in list(Provider.streaming):
        if one.left > 0:
            one.left -= 1
            one.transport.write(EVENT)
        else:
            Provider.streaming.discard(one)
            one.transport.write(LAST)
    Provider.ticking = bool(Provider.streaming)
    if Provider.ticking:
        asyncio.get_running_loop().call_soon(tick)


async def main() -> None:
    Provider.events = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
