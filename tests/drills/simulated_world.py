"""A world for the simulation: virtual time, a seeded order of everything that is ready, a store and gateways that fail by dice.

What is real is the dispatcher, its leases and the schedules. The store keeps its promises (a commit is whole, fences hold) and
nothing else: answers are late or lost, its wall clock jumps, and what a node asks of it waits while the node is frozen.
"""

import asyncio
import hashlib
import random
import selectors
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from nexus.core import errors
from nexus.core.phases import RunPhase, is_terminal
from nexus.kit import sse
from nexus.ports import schedule_store
from nexus.ports import task_store as port

LANE = port.Lane(tenant="default", agent="echo", environment="production")
SSE = {"content-type": "text/event-stream"}


class _Still(selectors.SelectSelector):
    """Waits in no time: the loop's clock is moved on instead."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits for ever")
        self.passed += max(0.0, timeout)
        return []


class Loop(asyncio.SelectorEventLoop):
    """Virtual time; what is ready runs in an order drawn from the seed."""

    def __init__(self, dice: random.Random) -> None:
        self._still = _Still()
        self._dice = dice
        super().__init__(self._still)

    def time(self) -> float:
        return self._still.passed

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        if len(ready) > 1:
            order = list(ready)
            self._dice.shuffle(order)
            ready.clear()
            ready.extend(order)
        super()._run_once()  # type: ignore[misc]


@dataclass(slots=True)
class Trace:
    """What happened, in order; two runs of a seed must leave the same."""

    loop: Loop
    lines: int = 0
    _sum: Any = field(default_factory=hashlib.sha256)

    def note(self, *words: object) -> None:
        self.lines += 1
        self._sum.update(f"{self.loop.time():.6f} {words}\n".encode())

    @property
    def digest(self) -> str:
        return str(self._sum.hexdigest()[:16])


@dataclass(slots=True)
class Clock:
    """A node's clocks; its wall clock is wrong by `wrong`."""

    loop: Loop
    wrong: float = 0.0

    def time(self) -> float:
        return 1_800_000_000.0 + self.loop.time() + self.wrong

    def monotonic(self) -> float:
        return self.loop.time()


@dataclass(slots=True)
class Row:
    """A task as it is stored."""

    entry: port.Submission
    number: int
    phase: RunPhase = RunPhase.PENDING
    owner: str | None = None
    fence: int = 0
    attempt: int = 0
    strikes: int = 0
    deferrals: int = 0
    due_at: float = 0.0
    set_at: float = 0.0
    parked: bool = False
    cancel: bool = False
    output: str | None = None
    events: list[port.TaskEvent] = field(default_factory=list)


@dataclass(slots=True)
class World:
    """The database and its clock. `wall` is what its clock shows; due times go by it, leases do not."""

    loop: Loop
    dice: random.Random
    trace: Trace
    rows: dict[str, Row] = field(default_factory=dict)
    owners: dict[str, int] = field(default_factory=dict)
    connected: set[str] = field(default_factory=set)
    schedules: dict[str, schedule_store.Schedule] = field(default_factory=dict)
    listeners: dict[str, Callable[[], None]] = field(default_factory=dict)
    wrong: float = 0.0
    runs: Counter[tuple[str, int]] = field(default_factory=Counter)

    @property
    def wall(self) -> float:
        return 1_800_000_000.0 + self.loop.time() + self.wrong

    def tell(self) -> None:
        for wake in list(self.listeners.values()):
            self.loop.call_later(self.dice.uniform(0, 0.02), wake)

    def insert(self, entry: port.Submission, owner: str | None = None) -> Row:
        begin = entry.run_at if entry.run_at is not None else self.wall + (entry.delay_s or 0.0)
        parked = begin > self.wall
        row = Row(entry=entry, number=len(self.rows), due_at=begin if parked else 0.0, parked=parked)
        row.set_at = self.wall if entry.delay_s is not None else 0.0
        if owner is not None and not row.parked:
            row.phase, row.owner, row.fence, row.attempt = RunPhase.RUNNING, owner, 1, 1
        self.rows[entry.id] = row
        return row

    def view(self, row: Row) -> port.Task:
        entry = row.entry
        return port.Task(
            id=entry.id, number=row.number, lane=entry.lane, principal=entry.principal, phase=row.phase, attempt=row.attempt,
            last_seq=len(row.events), progress=None, message=None, session_id=None, output=row.output, metadata=None, error=None,
            cancel_requested=row.cancel, created_at=self.wall, started_at=None, finished_at=None,
            idempotency_key=entry.idempotency_key, digest=entry.digest, run_at=row.due_at if row.parked else None,
        )  # fmt: skip


class Store:
    """What one node sees of the world's database. `node` freezes, dies and is cut off."""

    def __init__(self, world: World, node: "Node") -> None:
        self._world, self._node = world, node

    async def _ask(self, verb: str, commit: Callable[[], Any], *, risky: bool = True) -> Any:
        """Late, sometimes never, sometimes done and the answer lost."""
        world, dice = self._world, self._world.dice
        await self._node.thaw()
        await asyncio.sleep(dice.uniform(0.0002, 0.01))
        await self._node.thaw()
        if self._node.dead or (risky and dice.random() < self._node.trouble):
            raise errors.Unavailable("the database is away", code="database.unavailable")
        answer = commit()
        world.trace.note(self._node.name, verb)
        await asyncio.sleep(dice.uniform(0.0002, 0.01))
        await self._node.thaw()
        if self._node.dead or (risky and dice.random() < self._node.trouble):
            raise errors.Unavailable("the answer was lost", code="database.unavailable")
        return answer

    async def submit(
        self, submissions: Sequence[port.Submission], *, owner: str | None = None, start: Collection[str] = ()
    ) -> Sequence[tuple[port.Task, bool]]:
        def commit() -> list[tuple[port.Task, bool]]:
            world, made = self._world, []
            for entry in submissions:
                known = entry.id in world.rows
                claimed = owner if entry.id in start and owner in world.owners else None
                row = world.rows[entry.id] if known else world.insert(entry, claimed)
                made.append((world.view(row), not known))
            world.tell()
            return made

        found: list[tuple[port.Task, bool]] = await self._ask("submit", commit)
        return found

    async def enlist(self, owner: str) -> None:
        while True:
            try:
                await self._ask("enlist", lambda: self._world.owners.setdefault(owner, 0))
                return
            except errors.Unavailable:
                await asyncio.sleep(0.2)

    async def beat(self, owner: str) -> Mapping[str, port.Wish] | None:
        def commit() -> dict[str, port.Wish] | None:
            world = self._world
            if owner not in world.owners:
                return None
            world.owners[owner] += 1
            mine = (row for row in world.rows.values() if row.owner == owner and row.phase is RunPhase.RUNNING)
            return {row.entry.id: "cancel" for row in mine if row.cancel}

        found: dict[str, port.Wish] | None = await self._ask("beat", commit)
        return found

    async def owners(self) -> dict[str, tuple[int, bool]]:
        world = self._world
        found: dict[str, tuple[int, bool]] = await self._ask(
            "owners", lambda: {owner: (beats, owner in world.connected) for owner, beats in world.owners.items()}
        )
        return found

    async def bury(self, owner: str, *, beats: int) -> int:
        def commit() -> int:
            world, count = self._world, 0
            if world.owners.get(owner) != beats:
                return 0
            del world.owners[owner]
            for row in world.rows.values():
                if row.owner == owner and row.phase is RunPhase.RUNNING:
                    row.phase, row.owner, row.due_at, count = RunPhase.PENDING, None, 0.0, count + 1
                    self._end_if_cancelled(row)
            world.tell()
            return count

        return int(await self._ask("bury", commit))

    async def claim(
        self, owner: str, *, limit: int, per_lane: int, paused: Collection[port.Lane], per_tenant: int | None = None
    ) -> Sequence[port.Claim]:
        def commit() -> list[port.Claim]:
            world = self._world
            if owner not in world.owners:
                return []
            ripe = [
                row for row in world.rows.values()
                if row.phase is RunPhase.PENDING and not row.parked and row.entry.lane not in paused
                and (row.due_at <= world.wall or row.set_at > world.wall)
            ]  # fmt: skip
            taken = sorted(ripe, key=lambda row: (-row.entry.priority, row.number))[:limit]
            for row in taken:
                row.phase, row.owner = RunPhase.RUNNING, owner
                row.fence, row.attempt = row.fence + 1, row.attempt + 1
            return [self._claim_of(row) for row in taken]

        found: list[port.Claim] = await self._ask("claim", commit)
        return found

    def _claim_of(self, row: Row) -> port.Claim:
        entry = row.entry
        return port.Claim(
            id=entry.id, lane=entry.lane, principal="key", body=entry.body, fence=row.fence, attempt=row.attempt,
            strikes=row.strikes, deferrals=row.deferrals, max_attempts=entry.max_attempts, last_seq=len(row.events),
            session_id=None, traceparent=None,
        )  # fmt: skip

    async def write(self, writes: Sequence[port.Write]) -> Sequence[bool]:
        found: list[bool] = await self._ask("write", lambda: [self._apply(entry) for entry in writes])
        return found

    def _apply(self, entry: port.Write) -> bool:
        row = self._world.rows[entry.task_id]
        if row.fence != entry.fence or row.phase is not RunPhase.RUNNING:
            return False
        if isinstance(entry, port.Append):
            row.events += [event for event in entry.events if event.seq > len(row.events)]
        elif isinstance(entry, port.Finish):
            row.events += [*entry.before, entry.event]
            row.phase, row.owner, row.output = entry.phase, None, entry.output
        elif isinstance(entry, port.Release):
            row.phase, row.owner, row.set_at = RunPhase.PENDING, None, self._world.wall
            row.due_at = row.set_at + entry.pause_s
            row.attempt -= not entry.began
            row.strikes += entry.strike
            row.deferrals = 0 if entry.began else row.deferrals + 1
            self._end_if_cancelled(row)
            self._world.tell()
        return True

    def _end_if_cancelled(self, row: Row) -> None:
        if row.cancel:
            row.phase = RunPhase.CANCELLED
            row.events.append(port.TaskEvent(seq=len(row.events) + 1, name="run.cancelled", data="{}"))

    async def has_backlog(self) -> bool:
        rows = self._world.rows
        return bool(
            await self._ask("backlog", lambda: any(row.phase is RunPhase.PENDING and not row.parked for row in rows.values()))
        )

    async def held(self, owner: str) -> Sequence[tuple[str, int]]:
        def commit() -> list[tuple[str, int]]:
            rows = self._world.rows.values()
            return [(row.entry.id, row.fence) for row in rows if row.owner == owner and row.phase is RunPhase.RUNNING]

        found: list[tuple[str, int]] = await self._ask("held", commit)
        return found

    async def tend(self) -> port.Tended:
        def commit() -> port.Tended:
            world = self._world
            parked = [row for row in world.rows.values() if row.parked and row.phase is RunPhase.PENDING]
            ripe = [row for row in parked if row.due_at <= world.wall or row.set_at > world.wall]
            for row in ripe:
                row.parked = False
            left = [row.due_at - world.wall for row in parked if row.parked]
            return port.Tended(due=len(ripe), expired=0, next_s=min(left) if left else None)

        found: port.Tended = await self._ask("tend", commit)
        return found

    async def sweep(self, *, keep_completed_s: float, keep_failed_s: float, limit: int) -> int:
        return 0

    async def thin(self, *, after: float, until: float, limit: int) -> tuple[int, float | None]:
        return 0, None

    async def log_bytes(self) -> int:
        return 0

    # schedules

    async def due_lanes(self, *, limit: int) -> Sequence[port.Lane]:
        def commit() -> list[port.Lane]:
            world = self._world
            return [each.lane for each in world.schedules.values() if each.next_at is not None and each.next_at <= world.wall]

        found: list[port.Lane] = await self._ask("lanes", commit)
        return found

    async def fire(self, plan: Callable[[schedule_store.Schedule, float], schedule_store.Firing], *, limit: int) -> int:
        def commit() -> int:
            world, made = self._world, 0
            keys = {row.entry.idempotency_key for row in world.rows.values()}
            for name, each in world.schedules.items():
                if each.next_at is None or each.next_at > world.wall:
                    continue
                firing = plan(each, world.wall)
                fresh = [entry for entry in firing.submissions if entry.idempotency_key not in keys]
                for entry in fresh:
                    world.insert(replace(entry, id=f"task_s{len(world.rows):06d}"))
                made += len(fresh)
                world.schedules[name] = replace(
                    each, next_at=firing.next_at, fired=each.fired + len(fresh), missed=each.missed + firing.missed
                )
            world.tell()
            return made

        return int(await self._ask("fire", commit))

    async def now(self) -> float:
        return float(await self._ask("now", lambda: self._world.wall))


@dataclass(slots=True)
class Node:
    """What happens to one dispatcher's process. `trouble` is how likely the database fails it."""

    name: str
    loop: Loop
    trouble: float = 0.0
    dead: bool = False
    frozen_until: float = 0.0

    async def thaw(self) -> None:
        while self.frozen_until > self.loop.time():
            await asyncio.sleep(self.frozen_until - self.loop.time())


class Gateway:
    """Runs as an agent and the way to it behave: well, badly, or not at all."""

    def __init__(self, world: World, node: Node) -> None:
        self._world, self._node = world, node

    def close(self) -> None:
        """Nothing is kept."""

    @asynccontextmanager
    async def run(self, claim: port.Claim) -> AsyncIterator["Answer"]:
        dice = self._world.dice
        await asyncio.sleep(dice.uniform(0.0005, 0.02))
        await self._node.thaw()
        draw = dice.random()
        if draw < 0.03:
            raise errors.Unavailable("no gateway", code="gateway.unreachable")
        if draw < 0.06:
            yield Answer(self._world, self._node, claim, status=503)
            return
        self._world.runs[claim.id, claim.attempt] += 1
        yield Answer(self._world, self._node, claim, lost=draw < 0.12)


class Answer:
    """One answer; `chunks` brings a few events and, unless it is lost on the way, the end."""

    def __init__(self, world: World, node: Node, claim: port.Claim, *, status: int = 200, lost: bool = False) -> None:
        self._world, self._node, self._claim, self._lost = world, node, claim, lost
        self.status = status
        self.fields = SSE if status == 200 else {"content-type": "application/json", "retry-after": "1"}

    async def body(self, limit: int) -> bytes:
        return b'{"code": "agent.busy", "detail": "busy", "kind": "unavailable"}'

    async def chunks(self) -> AsyncIterator[bytes]:
        dice, name = self._world.dice, self._claim.id
        yield sse.encode(sse.Event(data="{}", name="run.started"))
        for number in range(dice.randrange(4)):
            await asyncio.sleep(dice.choice((0.001, 0.01, 0.5, 20.0)) * dice.random())
            await self._node.thaw()
            yield sse.encode(sse.Event(data=f'{{"percent": {number}}}', name="progress"))
        await asyncio.sleep(dice.choice((0.001, 0.05, 2.0)) * dice.random())
        await self._node.thaw()
        if not self._lost:
            data = f'{{"output": "{name} {self._claim.attempt}", "metadata": {{}}}}'
            yield sse.encode(sse.Event(data=data, name="run.completed"))


def wrong(world: World, accepted: Collection[str]) -> list[str]:
    """What does not hold of the promises; empty when all is well."""
    found = []
    for name in accepted:
        row = world.rows.get(name)
        if row is None:
            found.append(f"{name} is lost")
            continue
        ends = [event.name for event in row.events if event.name in ("run.completed", "run.failed", "run.cancelled")]
        if not is_terminal(row.phase) or len(ends) != 1 or not row.events or row.events[-1].name != ends[0]:
            found.append(f"{name} is {row.phase} with ends {ends}")
        if [event.seq for event in row.events] != list(range(1, len(row.events) + 1)):
            found.append(f"{name} has a gap in its events")
        if row.phase is RunPhase.COMPLETED and (row.output is None or not row.output.startswith(f'"{name} ')):
            found.append(f"{name} has another's result: {row.output}")
        ran = sum(count for (task, _), count in world.runs.items() if task == name)
        if ran > row.attempt:
            found.append(f"{name} ran {ran} times in {row.attempt} attempts")
    for (name, attempt), count in world.runs.items():
        if count > 1:
            found.append(f"attempt {attempt} of {name} ran {count} times")
    return found
