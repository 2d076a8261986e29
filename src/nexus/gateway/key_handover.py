"""What a gateway knows of `Idempotency-Key`s passes to the one that replaces it, over the line on which the sockets passed.

The older tells every key at once, then what becomes of those whose runs are still under way in it, until it ends. Until the first
part is over the successor takes no run with a key: those wait at its sibling socket, which opens after it. From then on the older
passes runs with a key to that socket as well.
"""

import asyncio
import contextlib
import json
import logging
import socket
from typing import Any

from nexus.gateway import kept

_LOG = logging.getLogger(__name__)
_ALL_WITHIN_S = 3.0
_LONGEST_LINE = 256 * 1024


async def tell(keys: kept.Keys, line: socket.socket, now: float, over: asyncio.Event) -> None:
    """The older gateway's part: all keys, then what becomes of each, until `over` is set and the last word is said."""
    _, writer = await asyncio.open_unix_connection(sock=line)
    changed: asyncio.Queue[kept.Key | None] = asyncio.Queue()
    keys.on_change = changed.put_nowait
    ending = asyncio.ensure_future(over.wait())
    ending.add_done_callback(lambda _: changed.put_nowait(None))
    try:
        for key, use in keys.uses():
            writer.write(_render(key, use, now))
            await writer.drain()
        writer.write(b'{"all":true}\n')
        while (word := await changed.get()) is not None:
            writer.write(_render(word, keys.find(word), now))
            await writer.drain()
        await writer.drain()
    except OSError as error:
        _LOG.warning("the successor did not hear all about Idempotency-Keys: %s", error)
    finally:
        keys.on_change = None
        ending.cancel()
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await writer.wait_closed()


async def listen(keys: kept.Keys, line: socket.socket, now: float, known: asyncio.Event) -> None:
    """The successor's part. Sets `known` when the first part is over, or when the older one falls silent before."""
    under_way: set[kept.Key] = set()
    try:
        reader, writer = await asyncio.open_unix_connection(sock=line, limit=_LONGEST_LINE)
        try:
            async with asyncio.timeout(_ALL_WITHIN_S) as patience:
                while text := await reader.readline():
                    told: dict[str, Any] = json.loads(text)
                    if told.get("all"):
                        patience.reschedule(None)
                        known.set()
                        continue
                    key, use = _parse(told, now, await reader.readexactly(max(0, told.get("size", 0))))
                    if key not in under_way and keys.find(key) is not None:
                        continue  # it came here too, meanwhile
                    (under_way.discard if use is None or use.done else under_way.add)(key)
                    keys.adopt(key, use)
        finally:
            writer.close()
    except (OSError, TimeoutError, ValueError, KeyError, TypeError, asyncio.IncompleteReadError) as error:
        _LOG.warning("the older gateway did not tell all about Idempotency-Keys: %s", error or type(error).__name__)
    finally:
        known.set()
        for key in under_way:  # it is gone, and with it their runs
            keys.release(key)


def _render(key: kept.Key, use: kept.Use | None, now: float) -> bytes:
    tenant, deployment, name = key
    told: dict[str, Any] = {"key": [tenant, deployment, name.decode("latin-1")]}
    body = b""
    if use is not None:
        told |= {"fingerprint": use.fingerprint.hex(), "age_s": max(0.0, now - use.at), "done": use.done}
        if use.answer is not None:
            body = use.answer.body
            told |= {
                "status": use.answer.status,
                "headers": [[each.decode("latin-1") for each in header] for header in use.answer.headers],
                "size": len(body),
            }
    return json.dumps(told).encode() + b"\n" + body


def _parse(told: dict[str, Any], now: float, body: bytes) -> tuple[kept.Key, kept.Use | None]:
    tenant, deployment, name = (str(part) for part in told["key"])
    key = (tenant, deployment, name.encode("latin-1"))
    if "fingerprint" not in told:
        return key, None
    answer = None
    at = now - float(told["age_s"])
    if "status" in told:
        headers = tuple((str(name).encode("latin-1"), str(value).encode("latin-1")) for name, value in told["headers"])
        answer = kept.Answer(int(told["status"]), headers, body, at)
    return key, kept.Use(bytes.fromhex(told["fingerprint"]), at, bool(told["done"]), answer)
