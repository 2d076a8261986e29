"""Runs tasks: claims them, sends them through a gateway, records their events and their one result. The store is the truth.

Loops: claim (woken by NOTIFY and free slots), beat (proves life, hears cancellations), bury (takes back what dead owners held),
writer (group commit). A run that is cancelled, fenced out or let go at shutdown ends by its task being cancelled with a reason.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Self

from nexus.core import errors
from nexus.kit import clock as clocks
from nexus.kit import guard, http1, sse
from nexus.ports import task_store
from nexus.tasks import door, grouping, leases, pacing, verdict
from nexus.tasks.settings import TaskSettings
from nexus.wire import problem as problems
from nexus.wire import runs

_LOG = logging.getLogger(__name__)
RETRIED, RESUMED = "run.retried", "run.resumed"
_LETTING_GO_S = 5.0


class Stop(Enum):
    """Why a run in hand is to end."""

    CANCELLED = "cancelled"
    PAUSED = "paused"
    STOPPING = "stopping"
    FENCED = "fenced"


class FencedOut(Exception):
    """The task is no longer ours; whatever we know about it does not count."""


@dataclass(slots=True, eq=False)
class _Hand:
    """One run in hand. `seq` numbers the last event that was recorded."""

    claim: task_store.Claim
    seq: int
    stop: Stop | None = None
    settling: bool = False
    task: "asyncio.Task[None] | None" = field(default=None)

    def end(self, reason: Stop) -> None:
        if self.task is not None and self.stop is None and not self.settling:
            self.stop = reason
            self.task.cancel()


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
        self._owner = owner
        self._clock = clock
        self._settings = settings or TaskSettings()
        self._pacing = pacing.Pacing(self._settings.defer)
        self._watch = leases.OwnerWatch(lease_s=self._settings.lease_s, orphan_s=self._settings.orphan_s)
        self._writer: grouping.Grouped[task_store.Write, bool] = grouping.Grouped(store.write, patient=True)
        self._hands: dict[str, _Hand] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._awake = asyncio.Event()
        self._life = AsyncExitStack()

    def wake(self) -> None:
        """There may be work."""
        self._awake.set()

    def cancel(self, task_id: str) -> None:
        """Cancellation of this task was asked for; of no consequence unless it is in hand here."""
        if (hand := self._hands.get(task_id)) is not None:
            hand.end(Stop.CANCELLED)

    def pause(self, task_id: str) -> None:
        """A pause of this task was asked for: its attempt ends here, and the store keeps it until it is resumed."""
        if (hand := self._hands.get(task_id)) is not None:
            hand.end(Stop.PAUSED)

    @property
    def running(self) -> int:
        return len(self._hands)

    async def __aenter__(self) -> Self:
        writer = await self._life.enter_async_context(guard.Loops())
        writer.start("task-writer", self._writer.run)
        self._life.push_async_callback(self._let_go)
        loops = await self._life.enter_async_context(guard.Loops())
        loops.start("task-claim", self._claim_loop)
        loops.start("task-beat", self._beat_loop)
        loops.start("task-bury", self._bury_loop)
        loops.start("task-tend", self._tend_loop)
        loops.start("task-sweep", self._sweep_loop)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._life.aclose()

    async def _let_go(self) -> None:
        """Give what is in hand back to the queue, so that the next dispatcher need not wait for the lease."""
        for hand in list(self._hands.values()):
            hand.end(Stop.STOPPING)
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=_LETTING_GO_S)
            for task in late:
                task.cancel()

    async def _claim_loop(self) -> None:
        await self._store.enlist(self._owner)
        while True:
            self._awake.clear()
            if not await self._claim():
                resting = self._pacing.next_wake_s(now=self._clock.monotonic())
                await _wait(self._awake, min(self._settings.poll_s, resting if resting is not None else self._settings.poll_s))

    async def _claim(self) -> bool:
        """Whether there may be more at once."""
        free = self._settings.concurrency - len(self._hands)
        if free <= 0:
            return False
        paused = self._pacing.paused(now=self._clock.monotonic())
        try:
            claims = await self._store.claim(
                self._owner,
                limit=free,
                per_lane=self._settings.per_lane,
                per_tenant=self._settings.per_tenant,
                paused=paused,
            )
        except errors.Unavailable as error:
            _LOG.warning("no tasks can be claimed: %s", error.cause or error)
            return False
        for claim in claims:
            hand = _Hand(claim=claim, seq=claim.last_seq)
            self._hands[claim.id] = hand
            hand.task = guard.spawn(self._run(hand), name=f"task {claim.id}", owner=self._tasks)
        return bool(claims)

    async def _beat_loop(self) -> None:
        await self._store.enlist(self._owner)
        while True:
            try:
                wishes = await self._store.beat(self._owner)
            except errors.Unavailable as error:
                _LOG.warning("the lease cannot be renewed: %s", error.cause or error)
                wishes = {}
            if wishes is None:
                _LOG.warning("this dispatcher was taken for dead; it lets go of %d tasks", len(self._hands))
                for hand in list(self._hands.values()):
                    hand.end(Stop.FENCED)
                await self._store.enlist(self._owner)
            for task_id, wish in (wishes or {}).items():
                (self.cancel if wish == "cancel" else self.pause)(task_id)
            await asyncio.sleep(self._settings.beat_s)

    async def _tend_loop(self) -> None:
        """Start what waited for its time, end what waited too long. Every dispatcher does it; none is the leader."""
        while True:
            try:
                tended = await self._store.tend()
            except errors.Unavailable as error:
                _LOG.warning("the queue cannot be looked after: %s", error.cause or error)
            else:
                if tended.due:
                    self.wake()
            await asyncio.sleep(self._settings.poll_s)

    async def _sweep_loop(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_s)
            try:
                gone = self._settings.sweep_batch
                while gone >= self._settings.sweep_batch:
                    gone = await self._store.sweep(
                        keep_completed_s=self._settings.keep_completed_s,
                        keep_failed_s=self._settings.keep_failed_s,
                        limit=self._settings.sweep_batch,
                    )
            except errors.Unavailable as error:
                _LOG.warning("old tasks cannot be deleted: %s", error.cause or error)

    async def _bury_loop(self) -> None:
        while True:
            try:
                await self._bury()
            except errors.Unavailable as error:
                _LOG.warning("dead dispatchers cannot be looked for: %s", error.cause or error)
            await asyncio.sleep(min(self._settings.orphan_s, self._settings.beat_s) / 2)

    async def _bury(self) -> None:
        owners = await self._store.owners()
        owners.pop(self._owner, None)
        for owner, beats in self._watch.decide_dead(owners, now=self._clock.monotonic()):
            count = await self._store.bury(owner, beats=beats)
            if count:
                _LOG.warning("took back %d tasks from dispatcher %s, which is gone", count, owner)
            self.wake()

    async def _run(self, hand: _Hand) -> None:
        try:
            ending = await self._outcome(hand)
            hand.settling = True
            if ending is not None:
                await self._settle(hand, ending)
        except FencedOut:
            _LOG.warning("task %s was taken over; attempt %d ends unheard", hand.claim.id, hand.claim.attempt)
        finally:
            self._hands.pop(hand.claim.id, None)
            self._awake.set()

    async def _outcome(self, hand: _Hand) -> verdict.Verdict | Stop | None:
        tried = hand.claim.attempt - hand.claim.waits  # who asks people a hundred times was not lost a hundred times
        if tried > self._settings.most_attempts:
            return verdict.exhausted(tried - 1, {"code": "task.interrupted", "detail": "its host died each time"})
        limit = verdict.decide_limit(hand.claim, longest_s=self._settings.run_timeout_s)
        try:
            async with asyncio.timeout(limit.seconds):
                return await self._attempt(hand)
        except errors.NexusError as error:
            return verdict.judge_error(error)
        except TimeoutError:
            return _fault(limit.error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if hand.stop is None or task is None:
                raise
            task.uncancel()
            if hand.stop is Stop.FENCED:
                return None
            return verdict.cancelled() if hand.stop is Stop.CANCELLED else Stop.STOPPING

    async def _attempt(self, hand: _Hand) -> verdict.Verdict:
        async with self._door.run(hand.claim) as stream:
            content_type = stream.fields.get("content-type", "")
            if stream.status != 200 or not content_type.startswith("text/event-stream"):
                body = await stream.body(self._settings.max_event_bytes)
                return verdict.judge_answer(
                    stream.status, content_type=content_type, body=body, retry_after=stream.fields.get("retry-after")
                )
            self._pacing.began(hand.claim.lane)
            return await self._follow(hand, stream)

    async def _follow(self, hand: _Hand, stream: http1.AnswerStream) -> verdict.Verdict:
        if hand.claim.attempt > 1:
            text = verdict.text_of({"attempt": hand.claim.attempt})
            lost = hand.claim.attempt - 1 > hand.claim.waits
            await self._record(hand, [sse.Event(data=text, name=RETRIED if lost else RESUMED)])
        decoder = sse.Decoder(limit=self._settings.max_event_bytes)
        async for chunk in stream.chunks():
            try:
                events = list(decoder.feed(chunk))
            except ValueError as error:
                return _fault(errors.AgentFailed("the agent sent an endless event", code="agent.bad_response", cause=str(error)))
            for place, event in enumerate(events):
                if event.name == runs.RUN_WAITING:
                    await self._record(hand, events[: place + 1])
                    return verdict.judge_waiting(event)
                if event.name in runs.TERMINAL:
                    await self._record(hand, events[:place])
                    return verdict.judge_terminal(event)
            await self._record(hand, events)
        raise errors.Unavailable("the event stream ended without a terminal event", code="upstream.failed")

    async def _record(self, hand: _Hand, events: Sequence[sse.Event]) -> None:
        """Append events and wait for the commit: a fast agent is slowed to what the store can take."""
        if not events:
            return
        stored = tuple(verdict.event_of(event, hand.seq + place) for place, event in enumerate(events, 1))
        progress, message = None, None
        for event in events:
            percent, words = verdict.progress_of(event)
            progress, message = (progress if percent is None else percent), (words or message)
        claim = hand.claim
        append = task_store.Append(task_id=claim.id, fence=claim.fence, events=stored, progress=progress, message=message)
        written = await self._writer.enqueue(append)
        hand.seq += len(stored)  # counted once it is on its way, even if this run is cancelled before it is committed
        if not await written:
            raise FencedOut

    async def _settle(self, hand: _Hand, ending: verdict.Verdict | Stop) -> None:
        try:
            held = await self._writer.put(self._write_of(hand, ending))
        except (errors.Internal, errors.Invalid) as error:  # the store refuses this very result; the task must end all the same
            _LOG.exception("the result of task %s cannot be stored", hand.claim.id)
            held = await self._writer.put(self._write_of(hand, _fault(error)))
        if not held:
            raise FencedOut

    def _write_of(self, hand: _Hand, ending: verdict.Verdict | Stop) -> task_store.Write:
        claim = hand.claim
        if isinstance(ending, verdict.Finished) and verdict.is_worth_another(ending, claim):
            ending = verdict.Lost(problem=ending.problem)
        if isinstance(ending, verdict.Lost):
            strikes = claim.strikes + 1
            if strikes >= claim.max_attempts:
                ending = verdict.exhausted(strikes, ending.problem)
            else:
                pause = verdict.pauses_of(claim, self._settings.retry).pause_s(claim.strikes)
                return task_store.Release(task_id=claim.id, fence=claim.fence, pause_s=pause, began=True, strike=True)
        if isinstance(ending, verdict.Finished):
            return task_store.Finish(
                task_id=claim.id,
                fence=claim.fence,
                phase=ending.phase,
                event=task_store.TaskEvent(seq=hand.seq + 1, name=f"run.{ending.phase}", data=ending.data),
                output=ending.output,
                metadata=ending.metadata,
                error=ending.error,
            )
        if isinstance(ending, verdict.Waiting):
            return task_store.Park(task_id=claim.id, fence=claim.fence, asks=ending.asks)
        if isinstance(ending, verdict.NotBegun):
            self._pacing.defer(claim.lane, now=self._clock.monotonic(), at_least_s=ending.retry_after_s)
            note = verdict.clean(f"waiting: {ending.problem.get('detail', '')}")
            if not claim.deferrals:
                _LOG.info("task %s waits: %s", claim.id, ending.problem.get("code"))
            return task_store.Release(task_id=claim.id, fence=claim.fence, pause_s=0, began=False, strike=False, note=note)
        return task_store.Release(task_id=claim.id, fence=claim.fence, pause_s=0, began=True, strike=False)


def _fault(error: errors.NexusError) -> verdict.Finished:
    return verdict.failed(problems.render(error))


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
