"""`ports.broker.Broker` through FastStream: RabbitMQ, Kafka, NATS JetStream and Redis Streams. Imported when one is used.

FastStream's own decoding, replies and acknowledgements are off: a message comes as it is, and is settled when its handler
returns.
"""

import asyncio
import contextlib
import importlib
import json
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from nexus.core import errors
from nexus.ports import broker as ports
from nexus.wire import triggers

_LOG = logging.getLogger("nexus.brokers")
_CONNECT_S = 15.0
_ABANDONED_MS = 30_000
_LOOK_S = 2.0


class FastStreamBroker:
    """One adapter for all four; what differs is in the table at the end."""

    @asynccontextmanager
    async def listen(self, source: ports.Source, handle: ports.Handle) -> AsyncIterator["Link"]:
        kind = triggers.SCHEMES[source.url.partition("://")[0]]
        try:
            module = importlib.import_module(f"faststream.{kind}")
        except ImportError as error:
            raise missing_extra(kind) from error
        link = _LINKS[kind](module, source)
        try:
            async with asyncio.timeout(_CONNECT_S):
                await link.start(handle)
        except Exception as error:
            with contextlib.suppress(Exception):
                await link.broker.stop()
            if isinstance(error, errors.NexusError):
                raise
            raise unavailable(source.url, error) from error
        try:
            yield link
        finally:
            with contextlib.suppress(Exception):
                await link.broker.stop()


class Link:
    """One connection. Subclasses make the vendor's objects."""

    def __init__(self, module: Any, source: ports.Source) -> None:
        self.module, self.source = module, source
        self.broker: Any = self.make()

    def make(self) -> Any:
        raise NotImplementedError

    def subscribe(self) -> list[Any]:
        """The subscribers, without handlers."""
        raise NotImplementedError

    async def prepare(self) -> None:
        """What has to be there before subscribers start; the broker is connected."""

    def id_of(self, message: Any) -> str | None:
        raise NotImplementedError

    def body_of(self, message: Any) -> bytes:
        body = message.body
        return body if isinstance(body, bytes) else str(body).encode()

    def correlation_of(self, message: Any) -> str | None:
        """What the sender calls it; FastStream makes one up where there is none."""
        given = message.headers.get("correlation_id")
        return str(given) if given else None

    def attach(self, subscriber: Any, handle: ports.Handle) -> None:
        """Let `handle` settle what this subscriber gets."""

        async def settle(message: Any) -> None:
            given = ports.Message(
                body=self.body_of(message),
                id=self.id_of(message),
                content_type=message.content_type,
                correlation=self.correlation_of(message),
            )
            await handle(given)
            await message.ack()

        subscriber(settle)

    async def start(self, handle: ports.Handle) -> None:
        await self.broker.connect()
        await self.prepare()
        for subscriber in self.subscribe():
            self.attach(subscriber, handle)
        await self.broker.start()

    async def publish(self, topic: str, body: bytes, *, correlation: str | None) -> None:
        try:
            await self.send(topic, body, correlation)
        except Exception as error:
            raise unavailable(self.source.url, error) from error

    async def send(self, topic: str, body: bytes, correlation: str | None) -> None:
        raise NotImplementedError

    async def ended(self) -> str:
        while True:
            await asyncio.sleep(_LOOK_S)
            if any(not subscriber.running for subscriber in self.broker.subscribers):
                return "the subscription ended"
            if not await self.broker.ping(timeout=_CONNECT_S):
                return "the broker does not answer"

    def options(self) -> dict[str, Any]:
        """What every broker and subscriber is made with."""
        policy = importlib.import_module("faststream").AckPolicy
        return {"ack_policy": policy.MANUAL, "decoder": _as_it_is, "no_reply": True}


async def _as_it_is(message: Any) -> Any:
    return message


_PLAIN: Mapping[str, Any] = {"apply_types": False, "logger": None, "graceful_timeout": 5.0}


class Rabbit(Link):
    def make(self) -> Any:
        channel = self.module.Channel(prefetch_count=self.source.prefetch)
        return self.module.RabbitBroker(self.source.url, default_channel=channel, timeout=_CONNECT_S, **_PLAIN)

    def subscribe(self) -> list[Any]:
        return [self.broker.subscriber(self.module.RabbitQueue(self.source.name, durable=True), **self.options())]

    def id_of(self, message: Any) -> str | None:
        """RabbitMQ numbers deliveries, not messages: only what the sender named can be told again."""
        given = message.raw_message.message_id
        return str(given) if given else None

    def correlation_of(self, message: Any) -> str | None:
        given = message.raw_message.correlation_id
        return str(given) if given else None

    async def send(self, topic: str, body: bytes, correlation: str | None) -> None:
        queue = self.module.RabbitQueue(topic, durable=True)
        await self.broker.declare_queue(queue)
        await self.broker.publish(
            body, queue=queue, persist=True, content_type="application/json", correlation_id=correlation, timeout=_CONNECT_S
        )


class Kafka(Link):
    def make(self) -> Any:
        parts = urlsplit(self.source.url)
        user, at, places = parts.netloc.rpartition("@")
        more: dict[str, Any] = {}
        if at:
            name, _, password = user.partition(":")
            security = importlib.import_module("faststream.security")
            more["security"] = security.SASLPlaintext(
                username=unquote(name), password=unquote(password), use_ssl="tls=1" in parts.query
            )
        return self.module.KafkaBroker(places.split(","), **more, **_PLAIN)

    def subscribe(self) -> list[Any]:
        return [
            self.broker.subscriber(self.source.name, group_id=self.source.group, auto_offset_reset="earliest", **self.options())
        ]

    def id_of(self, message: Any) -> str | None:
        record = message.raw_message
        return f"{record.topic}:{record.partition}:{record.offset}"

    async def send(self, topic: str, body: bytes, correlation: str | None) -> None:
        await self.broker.publish(body, topic, headers={"content-type": "application/json"}, correlation_id=correlation)


class Nats(Link):
    def make(self) -> Any:
        return self.module.NatsBroker(self.source.url, connect_timeout=int(_CONNECT_S), max_reconnect_attempts=-1, **_PLAIN)

    def subscribe(self) -> list[Any]:
        stream = self.module.JStream(_stream_of(self.source), subjects=[self.source.name])
        return [
            self.broker.subscriber(
                self.source.name,
                stream=stream,
                durable=f"{self.source.group}-{_plain(self.source.name)}",
                pull_sub=self.module.PullSub(batch_size=1, timeout=5.0),
                **self.options(),
            )
        ]

    def id_of(self, message: Any) -> str | None:
        given = message.headers.get("Nats-Msg-Id")
        found = message.raw_message.metadata.sequence.stream
        return str(given) if given else f"{_stream_of(self.source)}:{found}"

    async def send(self, topic: str, body: bytes, correlation: str | None) -> None:
        await self.broker.publish(body, topic, headers={"content-type": "application/json"}, correlation_id=correlation)


class Redis(Link):
    def make(self) -> Any:
        return self.module.RedisBroker(self.source.url, **_PLAIN)

    async def prepare(self) -> None:
        """The group begins with the stream, not with what comes after it."""
        client = await self.broker.connect()
        try:
            await client.xgroup_create(self.source.name, self.source.group, id="0", mkstream=True)
        except Exception as error:
            if "BUSYGROUP" not in str(error):
                raise

    def subscribe(self) -> list[Any]:
        """New messages, and those that a listener which died left behind."""
        consumer = f"nexus-{uuid.uuid4().hex[:12]}"
        shared = {"group": self.source.group, "consumer": consumer, "polling_interval": 500}
        fresh = self.module.StreamSub(self.source.name, max_records=self.source.prefetch, last_id=">", **shared)
        left = self.module.StreamSub(self.source.name, min_idle_time=_ABANDONED_MS, last_id=">", **shared)
        return [self.broker.subscriber(stream=stream, **self.options()) for stream in (fresh, left)]

    def id_of(self, message: Any) -> str | None:
        return str(message.raw_message["message_ids"][0].decode())

    def options(self) -> dict[str, Any]:
        return {**super().options(), "parser": _parse_entry}

    async def send(self, topic: str, body: bytes, correlation: str | None) -> None:
        client = await self.broker.connect()
        await client.xadd(topic, {"data": body, **({"correlation_id": correlation} if correlation else {})})


async def _parse_entry(raw: Mapping[str, Any], parse: Callable[[Any], Awaitable[Any]]) -> Any:
    """An entry of a Redis stream, whatever bytes are in it. Its body is the one field, or one named data, body, message or
    payload; else all of them as an object. FastStream's own envelope is taken apart by FastStream."""
    entry: Mapping[bytes, bytes] = raw["data"]
    if b"__data__" in entry:
        return await parse(raw)
    message = await parse({**raw, "data": {}})
    named = [entry[name] for name in (b"data", b"body", b"message", b"payload") if name in entry]
    if named or len(entry) == 1:
        body = bytes((named or list(entry.values()))[0])
    else:
        fields = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in entry.items()}
        body = json.dumps(fields).encode()
    message.raw_message, message.body, message.content_type = raw, body, None
    if (correlation := entry.get(b"correlation_id")) is not None:
        message.headers = {"correlation_id": correlation.decode("utf-8", "replace")}
    return message


_LINKS: Mapping[str, Callable[[Any, ports.Source], Link]] = {"rabbit": Rabbit, "kafka": Kafka, "nats": Nats, "redis": Redis}


def missing_extra(kind: str) -> errors.Unavailable:
    return errors.Unavailable(
        f"this installation cannot speak with {kind}",
        code="install.incomplete",
        cause=f"faststream[{kind}] is not installed",
        next_step=f"pip install 'nexus-agent-hosting[{kind}]' on the host, then: nexus triggers resume NAME",
    )


def unavailable(url: str, error: Exception) -> errors.Unavailable:
    place = urlsplit(url).netloc.rpartition("@")[2]
    told = str(error).replace(url, "the broker").split("\n", 1)[0]
    password = urlsplit(url).netloc.rpartition("@")[0].partition(":")[2]
    if password:
        told = told.replace(password, "***")
    return errors.Unavailable(
        f"the broker at {place} cannot be used", code="broker.unavailable", cause=f"{type(error).__name__}: {told}"[:300]
    )


def _stream_of(source: ports.Source) -> str:
    return source.stream or _plain(source.name).upper()


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)
