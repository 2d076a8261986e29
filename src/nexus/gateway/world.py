"""Everything one gateway process shares between its connections. Built by `process`, handed to each connection."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nexus.gateway import (
    breaker,
    callings,
    kept,
    limits,
    mint,
    model_batch,
    model_cache,
    model_spend,
    outbox,
    routes,
    sessions,
    settings,
    shapes,
    splits,
    upstream,
    usage,
)
from nexus.gateway.call import Match

if TYPE_CHECKING:
    from nexus.gateway import exchange, express, handler, lines, model_call, models_door, server, waiting


@dataclass(slots=True, kw_only=True)
class Counts:
    requests: int = 0
    refused: int = 0
    runs: int = 0
    model_calls: int = 0
    bad_upstream: int = 0
    in_flight: int = 0


@dataclass(slots=True, kw_only=True)
class World:
    """`table` is replaced as a whole by the feed. `rates` are those of keys, tenants and agents, `addresses` those of strangers.
    `paths`, `hosts`, `admitted` and `targets` remember what was worked out; `circuits` holds what is known of providers by their
    address, `model_handlers` the model calls under way."""

    settings: settings.Settings
    loop: asyncio.AbstractEventLoop
    pool: "upstream.Pool"
    waiting: "waiting.Room"
    rates: limits.Rates
    addresses: limits.Rates
    outbox: outbox.Outbox
    ledger: usage.Ledger
    open_handler: "Callable[[exchange.Exchange], handler.Handler]"
    reader: "lines.Reader"
    pins: splits.Pins
    spend: model_spend.Spend
    keys: kept.Keys = field(default_factory=kept.Keys)
    places: sessions.Places = field(default_factory=sessions.Places)
    calls: callings.Calls = field(default_factory=callings.Calls)
    draw: Callable[[], float] = random.random
    minter: mint.Minter = field(default_factory=mint.Minter)
    table: routes.RouteTable = field(default_factory=routes.RouteTable)
    shelves: model_cache.Shelves = field(default_factory=model_cache.Shelves, repr=False)
    counts: Counts = field(default_factory=Counts)
    connections: "set[server.ClientConnection]" = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    paths: dict[bytes, Match | None] = field(default_factory=dict)
    hosts: dict[bytes, bool] = field(default_factory=dict)
    admitted: "dict[tuple[bytes | None, ...], express.Admission]" = field(default_factory=dict, repr=False)
    targets: "dict[str, model_call.Target]" = field(default_factory=dict, repr=False)
    circuits: dict[str, breaker.Circuit] = field(default_factory=dict, repr=False)
    batches: model_batch.Batches = field(default_factory=model_batch.Batches, repr=False)
    model_handlers: "set[models_door.ModelHandler]" = field(default_factory=set, repr=False)
    requests: "shapes.Known[express.Opening]" = field(default_factory=lambda: shapes.Known(shapes.IN_REQUESTS), repr=False)
    loaded: asyncio.Event = field(default_factory=asyncio.Event)
    connected: bool = False
    draining: bool = False
    replaced: bool = False
    clock: Callable[[], float] = time.time
    started_at: float = field(default_factory=time.time)

    def swap(self, table: routes.RouteTable) -> None:
        """Put a whole new table in place and let waiting runs look again."""
        stopped = table.stops != self.table.stops and bool(table.stops)
        self.table = table
        self.loaded.set()
        self.hosts.clear()
        self.admitted.clear()
        self.targets.clear()
        if stopped:
            for handler in list(self.model_handlers):
                handler.check_stop()
        self.requests.clear()
        for connection in self.connections:
            connection.shape = None  # or an idle connection would keep the whole old table
        self.waiting.look_again()
