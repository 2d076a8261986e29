"""A load generator of raw keep-alive connections: `drive` counts the answers of a server in some seconds.

wrk is not everywhere; this is slower but the same for both sides, so the ratio is fair and the absolute figures are low.
"""

import asyncio
import time
from dataclasses import dataclass, field

import uvloop


@dataclass(frozen=True, kw_only=True)
class Outcome:
    requests: int
    errors: int
    seconds: float
    latencies_ms: list[float] = field(repr=False)

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def drive(host: str, port: int, request: bytes, *, connections: int, seconds: float) -> Outcome:
    return uvloop.run(_drive(host, port, request, connections, seconds))


async def _drive(host: str, port: int, request: bytes, connections: int, seconds: float) -> Outcome:
    loop = asyncio.get_running_loop()
    ends = time.perf_counter() + seconds
    callers = [Caller(request, ends) for _ in range(connections)]
    began = time.perf_counter()
    for caller in callers:
        await loop.create_connection(lambda caller=caller: caller, host, port)
    await asyncio.wait_for(asyncio.gather(*(caller.done for caller in callers)), seconds + 30)
    latencies = [value for caller in callers for value in caller.latencies_ms]
    return Outcome(
        requests=len(latencies),
        errors=sum(caller.errors for caller in callers),
        seconds=time.perf_counter() - began,
        latencies_ms=latencies,
    )


class Caller(asyncio.Protocol):
    """One connection that sends the next request when the last is answered."""

    def __init__(self, request: bytes, ends: float) -> None:
        self.request, self.ends = request, ends
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.latencies_ms: list[float] = []
        self.errors = 0
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        at = head.find(b"content-length:")
        if at < 0 or len(self.buffer) < end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0]):
            return
        self.buffer = b""
        now = time.perf_counter()
        if head[9:12] == b"200":
            self.latencies_ms.append((now - self.sent) * 1000)
        else:
            self.errors += 1
        if now < self.ends:
            self.send()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if time.perf_counter() < self.ends:
            self.errors += 1
        if not self.done.done():
            self.done.set_result(None)
