"""The typed client: `Client` blocks, `AsyncClient` awaits, and both perform the same operations.

`operations` and `feeds` say what to send and what an answer means, without I/O; `blocking` and `asynchronous` are the two thin
transports over httpx2. Errors are the tree of `nexus.core.errors`.
"""

from nexus.client.answers import Answer, Chunk, RunResult
from nexus.client.asynchronous import AsyncClient, AsyncStream
from nexus.client.blocking import Client, Stream

__all__ = ["Answer", "AsyncClient", "AsyncStream", "Chunk", "Client", "RunResult", "Stream"]
