"""Runs tasks: claims them or starts them as they are stored, and keeps them in hand until their end. The store is the truth.

Loops: claim (woken by NOTIFY and free slots), beat (proves life, hears cancellations), bury (takes back what dead owners held),
writer (group commit). A run that is cancelled, fenced out or let go at shutdown ends by its task being cancelled with a reason.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from nexus.core import errors
from nexus.kit import clock as clocks
from nexus.kit import guard
from nexus.ports import task_store
from nexus.tasks import attempt, door, leases, pacing, retention, slots, tending
from nexus.tasks.settings import TaskSettings

_LOG = logging.getLogger(__name__)
_LETTING_GO_S = 5.0


class Dispatcher:
    """An async context manager. `owner` must be new for each life of a process and be held by a connected `Listener`."""

    def __init__(
        self,
        *,
        store: task_store.TaskStore,
        door: door.GatewayDoor,
        owner: str,
        clock: clocks.Clock,
        settings: TaskSettings | None = None,
    ) -> None:
        self._store = store
        self._door = door
        self.owner = owner
        self._clock = clock
        self._settings = settings or TaskSettings()
        self._pacing = pacing.Pacing(self._settings.defer)
        self._watch = leases.OwnerWatch(lease_s=self._settings.lease_s, orphan_s=self._settings.orphan_s)
        self._attempts = attempt.Attempts(store=store, door=door, pacing=self._pacing, clock=clock, settings=self._settings)
        self._tender = tending.Tender(store=store, clock=clock, settings=self._settings, wake=self.wake)
        self._retention = retention.Retention(store=store, settings=self._settings, now=clock.time)
        self._slots = slots.Slots(self._settings)
        self._hands: dict[str, attempt.Hand] = {}
        self._starting: dict[str, task_store.Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._awake = asyncio.Event()
        self._wakes = 0
        self._caught_up = False  # the last claim took all that may run
        self._backlog = True  # tasks wait that no claim may take yet
        self.claimed = 0
        self._in_doubt = False  # a claim failed and may have been committed all the same
        self._draining = False
        self._claiming = asyncio.Lock()
        self._life = AsyncExitStack()

    def wake(self) -> None:
        """There may be work."""
        self._wakes += 1
        self._caught_up = False
        self._awake.set()

    def expect(self, delay_s: float) -> None:
        """A task is to start in so many seconds."""
        self._tender.expect(delay_s)

    def cancel(self, task_id: str) -> None:
        """Cancellation of this task was asked for; of no consequence unless it is in hand here."""
        if (hand := self._hands.get(task_id)) is not None:
            hand.end(attempt.Stop.CANCELLED)

    def pause(self, task_id: str) -> None:
        """A pause of this task was asked for: its attempt ends here, and the store keeps it until it is resumed."""
        if (hand := self._hands.get(task_id)) is not None:
            hand.end(attempt.Stop.PAUSED)

    @property
    def running(self) -> int:
        """Tasks in hand now; `claimed` counts all there were."""
        return len(self._hands)

    @property
    def draining(self) -> bool:
        """Whether nothing more is taken in hand; false as long as a claim is still under way."""
        return self._draining and not self._claiming.locked()

    def reserve(self, wanted: Sequence[task_store.Submission]) -> set[str]:
        """Ids of those that may start as they are stored; their slots are kept until `start`. None while others wait in line."""
        if not self._caught_up or self._draining:
            return set()
        now, found = self._clock.monotonic(), set()
        for entry in wanted:
            if not self._slots.has_room(entry.lane):
                continue
            if entry.delay_s is None and entry.run_at is None and not self._pacing.is_resting(entry.lane, now=now):
                found.add(entry.id)
                self._starting[entry.id] = entry.lane
                self._slots.take(entry.lane)
        return found

    def start(self, reserved: Collection[str], claims: Sequence[task_store.Claim] | None) -> None:
        """Give reservations back; run the claims that came of them. None: nobody knows which were stored."""
        for task_id in reserved:
            self._slots.give_back(self._starting.pop(task_id))
        if claims is None:
            self._in_doubt = bool(reserved) or self._in_doubt
        for claim in claims or ():
            self._take(claim)

    async def drain(self) -> None:
        """Take nothing more in hand, and return when what is has ended; however long that takes, it is kept from others."""
        self._draining = True
        async with self._claiming:  # a claim that is under way still counts
            pass
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> Self:
        writer = await self._life.enter_async_context(guard.Loops())
        writer.start("task-writer", self._attempts.write)
        self._life.callback(self._door.close)
        self._life.push_async_callback(self._let_go)
        loops = await self._life.enter_async_context(guard.Loops())
        loops.start("task-claim", self._claim_loop)
        loops.start("task-beat", self._beat_loop)
        loops.start("task-bury", self._bury_loop)
        loops.start("task-tend", self._tender.tend)
        loops.start("task-sweep", self._tender.sweep)
        loops.start("task-log", self._retention.run)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._caught_up = False
        await self._life.aclose()

    async def _let_go(self) -> None:
        """Give what is in hand back to the queue, so that the next dispatcher need not wait for the lease."""
        hands = list(self._hands.values())
        for hand in hands:
            hand.end(attempt.Stop.STOPPING)
        tasks = [hand.task for hand in hands if hand.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_LETTING_GO_S)
            for task in tasks:
                if task in late:
                    task.cancel()

    async def _claim_loop(self) -> None:
        await self._store.enlist(self.owner)
        while True:
            self._awake.clear()
            async with self._claiming:
                more = not self._draining and await self._claim()
            if not more:
                resting = self._pacing.next_wake_s(now=self._clock.monotonic())
                await _wait(self._awake, min(self._settings.poll_s, resting if resting is not None else self._settings.poll_s))

    async def _claim(self) -> bool:
        """Whether there may be more at once."""
        if (free := self._slots.free) <= 0:
            return False
        paused, wakes = self._pacing.paused(now=self._clock.monotonic()), self._wakes
        try:
            if self._in_doubt:
                await self._let_go_of_strays()
            claims = await self._store.claim(
                self.owner,
                limit=free,
                per_lane=self._settings.per_lane,
                per_tenant=self._settings.per_tenant,
                paused=paused,
            )
            if not claims and wakes == self._wakes:
                self._caught_up = self._backlog = True
                self._backlog = await self._store.has_backlog()
        except errors.Unavailable as error:
            _LOG.warning("no tasks can be claimed: %s", error.cause or error)
            self._in_doubt = True
            return False
        for claim in claims:
            self._take(claim)
        return bool(claims)

    def _take(self, claim: task_store.Claim) -> None:
        hand = attempt.Hand(claim=claim, seq=claim.last_seq, stored=claim.last_seq)
        self._hands[claim.id] = hand
        self.claimed += 1
        self._slots.take(claim.lane)
        hand.task = guard.spawn(self._run(hand), name=f"task {claim.id}", owner=self._tasks)

    async def _run(self, hand: attempt.Hand) -> None:
        try:
            await self._attempts.run(hand)
        finally:
            if self._hands.get(hand.claim.id) is hand:
                del self._hands[hand.claim.id]
            self._slots.give_back(hand.claim.lane)
            if self._backlog or not self._caught_up:
                self._awake.set()

    async def _beat_loop(self) -> None:
        await self._store.enlist(self.owner)
        while True:
            try:
                wishes = await self._store.beat(self.owner)
            except errors.Unavailable as error:
                _LOG.warning("the lease cannot be renewed: %s", error.cause or error)
                wishes = {}
            if wishes is None:
                _LOG.warning("this dispatcher was taken for dead; it lets go of %d tasks", len(self._hands))
                for hand in list(self._hands.values()):
                    hand.end(attempt.Stop.FENCED)
                await self._store.enlist(self.owner)
            for task_id, wish in (wishes or {}).items():
                (self.cancel if wish == "cancel" else self.pause)(task_id)
            await asyncio.sleep(self._settings.beat_s)

    async def _let_go_of_strays(self) -> None:
        """A claim whose answer was lost may have been committed: put back what the store says is ours and nobody here has.

        Called between two claims, so that none is under way whose tasks are not in hand yet.
        """
        known = {*self._hands, *self._starting}
        held = await self._store.held(self.owner)
        self._in_doubt = False
        known |= {*self._hands, *self._starting}
        for task_id, fence in held:
            if task_id not in known:  # one that came and went meanwhile has ended, so its release is refused
                _LOG.warning("task %s was claimed by a call whose answer was lost; it goes back to the queue", task_id)
                await self._attempts.put(task_store.Release(task_id=task_id, fence=fence, pause_s=0, began=True, strike=False))

    async def _bury_loop(self) -> None:
        while True:
            try:
                await self._bury()
            except errors.Unavailable as error:
                _LOG.warning("dead dispatchers cannot be looked for: %s", error.cause or error)
            await asyncio.sleep(min(self._settings.orphan_s, self._settings.beat_s) / 2)

    async def _bury(self) -> None:
        owners = await self._store.owners()
        self._slots.dispatchers = len({*owners, self.owner})
        owners.pop(self.owner, None)
        for owner, beats in self._watch.decide_dead(owners, now=self._clock.monotonic()):
            count = await self._store.bury(owner, beats=beats)
            if count:
                _LOG.warning("took back %d tasks from dispatcher %s, which is gone", count, owner)
            self.wake()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
