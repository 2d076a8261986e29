"""The verbs of the audit trail: take what gateways report, show it, export it, prove it, and let it go when its time is over."""

import asyncio
import csv
import io
import json
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

from nexus.audit import anchors, chain, entries, settings
from nexus.core import errors, principals
from nexus.kit import clock as clocks
from nexus.kit import guard
from nexus.ports import audit_store as ports

_LOG = logging.getLogger(__name__)
_PAGE, _PAGE_OF_CONTENT = 1000, 50
_GROUP = 500
_COLUMNS = (
    "seq", "at", "id", "principal", "user_id", "agent", "environment", "version", "instance_id", "session_id", "run_id",
    "requested", "model", "upstream_model", "provider", "dialect", "input_tokens", "output_tokens", "cached_tokens",
    "cache_written_tokens", "reasoning_tokens", "estimated", "cost_nano", "duration_s", "ttft_s", "attempts", "cached", "status",
    "outcome", "code", "hash",
)  # fmt: skip
Format = Literal["jsonl", "csv"]


class AuditTrail:
    """An async context manager: inside it old records are let go and ends are anchored. `platform_key` seals the chains."""

    def __init__(
        self, *, store: ports.AuditStore, platform_key: bytes, settings: settings.AuditSettings, clock: clocks.Clock
    ) -> None:
        self._store = store
        self._key = platform_key
        self._settings = settings
        self._clock = clock
        self._anchors = anchors.Anchors(settings.anchors, platform_key)
        self._loops = guard.Loops()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._anchors.load)
        await self._loops.__aenter__()
        self._loops.start("audit sweep", self._sweep_for_ever)
        self._loops.start("audit anchors", self._anchor_for_ever)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._loops.__aexit__(kind, error, trace)
        with suppress(OSError):
            await asyncio.to_thread(self._anchors.save)

    async def take(self, reports: Sequence[Any]) -> None:
        """Append the model calls among these; what is known is left alone. Raises `Unavailable` when not all is stored."""
        by_tenant: dict[str, list[ports.Draft]] = {}
        for number, report in enumerate(reports):
            entry = entries.render_entry(report, self._settings.rules)
            if entry is not None:
                by_tenant.setdefault(entry.tenant, []).append(_draft(entry))
                if entry.content is not None or number % _GROUP == _GROUP - 1:
                    await asyncio.sleep(0)  # redaction takes milliseconds, and others wait
        until = self._clock.time() + self._settings.keep_content_s
        for tenant, drafts in by_tenant.items():
            sealer = chain.Sealer(self._key, tenant)
            head = await self._store.append(
                tenant, drafts, chain=_chained(sealer), seal_end=_seal_end(sealer), content_until=until
            )
            if head is not None:
                self._anchors.note(tenant, chain.Link(*head))

    async def list(
        self,
        caller: principals.Principal,
        *,
        after: int = 0,
        limit: int = 100,
        since: float | None = None,
        until: float | None = None,
        agent: str | None = None,
        run_id: str | None = None,
        content: bool = False,
    ) -> list[dict[str, Any]]:
        """Records by their numbers, oldest first, as `export` gives them. Needs `read_audit`."""
        which = _which(caller, after=after, limit=limit, since=since, until=until, agent=agent, run_id=run_id, content=content)
        return [_shown(caller.tenant, row) for row in await self._store.rows(which)]

    async def export(
        self,
        caller: principals.Principal,
        *,
        form: Format = "jsonl",
        since: float | None = None,
        until: float | None = None,
        agent: str | None = None,
        content: bool = False,
    ) -> AsyncIterator[bytes]:
        """All records that fit, page by page. Permission is decided before the first page is asked for."""
        which = _which(
            caller,
            after=0,
            limit=_PAGE_OF_CONTENT if content else _PAGE,
            since=since,
            until=until,
            agent=agent,
            run_id=None,
            content=content,
        )
        return self._pages(caller.tenant, which, form)

    async def _pages(self, tenant: str, which: ports.AuditFilter, form: Format) -> AsyncIterator[bytes]:
        if form == "csv":
            yield _csv([dict(zip(_COLUMNS, _COLUMNS, strict=True))])
        async for page in self._read(which):
            shown = [_shown(tenant, row) for row in page]
            yield _csv(_flat(each) for each in shown) if form == "csv" else _lines(shown)

    async def _read(self, which: ports.AuditFilter) -> AsyncIterator[Sequence[ports.StoredRow]]:
        after = which.after
        while True:
            page = await self._store.rows(replace(which, after=after))
            if page:
                yield page
            if len(page) < which.limit:
                return
            after = page[-1].seq

    async def verify(self, caller: principals.Principal) -> dict[str, Any]:
        """Follow the caller's whole chain: `{"intact", "verified", "first", "last", "hash", "fault"?}`. Needs `read_audit`."""
        caller.require(principals.Action.READ_AUDIT)
        tenant = caller.tenant
        anchor = self._anchors.find(tenant)
        stored = await self._store.ends(tenant)
        if stored is None:
            lost = None if anchor is None else chain.Fault(seq=1, what=f"all of {anchor.seq} records were removed")
            return _verdict(lost, verified=0, floor=chain.Link(), head=chain.Link())
        sealer, ends = chain.Sealer(self._key, tenant), _ends(stored)
        verifier = chain.Verifier(sealer, ends)
        fault = verifier.begin()
        if fault is None:
            fault = await self._follow(verifier, tenant, head=ends.head.seq)
        if fault is None:
            anchored = None if anchor is None else await self._store.hash_at(tenant, anchor.seq)
            fault = verifier.finish(anchor, anchored)
        return _verdict(fault, verified=verifier.verified, floor=ends.floor, head=ends.head)

    async def _follow(self, verifier: chain.Verifier, tenant: str, *, head: int) -> chain.Fault | None:
        """The records up to `head`. Later ones were added meanwhile, if the chain's end has moved behind them since."""
        async for page in self._read(ports.AuditFilter(tenant=tenant, limit=_PAGE, content="hash")):
            rows = [
                chain.Row(
                    seq=row.seq,
                    text=row.text,
                    hash=row.hash,
                    seal=row.seal,
                    content_hash=row.content,
                )
                for row in page
            ]
            if rows and rows[-1].seq > head:
                now = await self._store.ends(tenant)
                if now is not None and now.head[0] >= rows[-1].seq:
                    rows = [row for row in rows if row.seq <= head]
            fault = verifier.feed(rows, (entries.content_hash_of(row.text) for row in page))
            if fault is not None or len(rows) < len(page):
                return fault
        return None

    async def sweep(self) -> int:
        """Let go of records and content whose time is over; how many. One pass."""
        now, batch = self._clock.time(), self._settings.sweep_batch
        count = await self._store.forget_contents(now=now, limit=batch)
        for tenant in await self._store.tenants():
            sealer = chain.Sealer(self._key, tenant)
            before = now - self._settings.keep_s
            count += await self._store.prune(tenant, before=before, limit=batch, seal_end=_seal_end(sealer))
        return count

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                count = await self.sweep()
            except errors.Unavailable as error:
                _LOG.warning("old audit records wait: %s", error.message)
                count = 0
            await asyncio.sleep(0.1 if count >= self._settings.sweep_batch else self._settings.sweep_s)

    async def _anchor_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.anchor_s)
            try:
                await asyncio.to_thread(self._anchors.save)
            except OSError as error:
                _LOG.warning("the ends of the audit trail could not be noted: %s", error)


def _which(caller: principals.Principal, *, agent: str | None, content: bool, **asked: Any) -> ports.AuditFilter:
    caller.require(principals.Action.READ_AUDIT, agent=agent)
    agents = caller.agents if agent is None else frozenset({agent})
    return ports.AuditFilter(
        tenant=caller.tenant, agents=agents, environment=caller.environment, content="text" if content else "", **asked
    )


def _draft(entry: entries.Entry) -> ports.Draft:
    return ports.Draft(
        id=entry.id, at=entry.at, agent=entry.agent, environment=entry.environment, run_id=entry.run_id, text=entry.text,
        content=entry.content,
    )  # fmt: skip


def _chained(sealer: chain.Sealer) -> ports.Chain:
    def chained(before: tuple[int, bytes], texts: Sequence[str]) -> Sequence[tuple[bytes, bytes]]:
        at, made = chain.Link(*before), []
        for text in texts:
            row = sealer.next(at, text)
            at = chain.Link(row.seq, row.hash)
            made.append((row.hash, row.seal))
        return made

    return chained


def _seal_end(sealer: chain.Sealer) -> ports.SealEnd:
    return lambda which, seq, hash_: sealer.end(which, chain.Link(seq, hash_))


def _ends(stored: ports.StoredEnds) -> chain.Ends:
    return chain.Ends(
        floor=chain.Link(*stored.floor[:2]),
        floor_seal=stored.floor[2],
        head=chain.Link(*stored.head[:2]),
        head_seal=stored.head[2],
    )


def _verdict(fault: chain.Fault | None, *, verified: int, floor: chain.Link, head: chain.Link) -> dict[str, Any]:
    verdict: dict[str, Any] = {
        "intact": fault is None,
        "verified": verified,
        "first": floor.seq + 1 if head.seq > floor.seq else None,
        "last": head.seq if head.seq > floor.seq else None,
        "hash": head.hash.hex(),
    }
    return verdict if fault is None else verdict | {"fault": {"seq": fault.seq, "what": fault.what}}


def _shown(tenant: str, row: ports.StoredRow) -> dict[str, Any]:
    shown = {
        "seq": row.seq, "tenant": tenant, "previous": row.previous.hex(), "hash": row.hash.hex(), "record": json.loads(row.text)
    }  # fmt: skip
    return shown if row.content is None else shown | {"content": json.loads(row.content)}


def _flat(shown: dict[str, Any]) -> dict[str, Any]:
    record = shown["record"]
    return {**record, "seq": shown["seq"], "at": record.get("started_at"), "hash": shown["hash"]}


def _lines(shown: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(each, separators=(",", ":")).encode() + b"\n" for each in shown)


def _csv(rows: Iterable[dict[str, Any]]) -> bytes:
    """A cell never begins like a formula of a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out)
    for row in rows:
        cells = (row.get(name) for name in _COLUMNS)
        writer.writerow(
            [f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell for cell in cells]
        )
    return out.getvalue().encode()
