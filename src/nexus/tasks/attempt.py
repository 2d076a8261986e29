"""One attempt of a claimed task: sent through a gateway, its events recorded in groups, its one result written under its fence.

Events are held for a few milliseconds: what ends sooner is written together with its end, in one commit. A fast agent is
slowed to what the store can take, as one write is under way at a time.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from nexus.core import errors
from nexus.kit import clock as clocks
from nexus.kit import http1_kept, sse
from nexus.ports import task_store
from nexus.tasks import door, grouping, pacing, verdict
from nexus.tasks.settings import TaskSettings
from nexus.wire import problem as problems
from nexus.wire import runs

_LOG = logging.getLogger(__name__)
RETRIED, RESUMED = "run.retried", "run.resumed"
_HOLD_S = 0.004


class Stop(Enum):
    """Why a run in hand is to end."""

    CANCELLED = "cancelled"
    PAUSED = "paused"
    STOPPING = "stopping"
    FENCED = "fenced"


class FencedOut(Exception):
    """The task is no longer ours; whatever we know about it does not count."""


@dataclass(slots=True, eq=False)
class Hand:
    """One run in hand. `stored` numbers the last event known to be written, `seq` the last one that is or is on its way; `held`
    are the ones behind it."""

    claim: task_store.Claim
    seq: int
    stored: int
    held: list[sse.Event] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    writing: "asyncio.Future[bool] | None" = None
    stop: Stop | None = None
    settling: bool = False
    task: "asyncio.Task[None] | None" = None

    def end(self, reason: Stop) -> None:
        if self.task is not None and self.stop is None and not self.settling:
            self.stop = reason
            self.task.cancel()


class Attempts:
    """`run` does the whole attempt of a hand. `write` is a loop of the caller's; without it nothing is recorded."""

    def __init__(
        self,
        *,
        store: task_store.TaskStore,
        door: door.GatewayDoor,
        pacing: pacing.Pacing,
        clock: clocks.Clock,
        settings: TaskSettings,
    ) -> None:
        self._door = door
        self._pacing = pacing
        self._clock = clock
        self._settings = settings
        self._writer: grouping.Grouped[task_store.Write, bool] = grouping.Grouped(store.write, patient=True)

    async def write(self) -> None:
        await self._writer.run()

    async def put(self, entry: task_store.Write) -> bool:
        """Whether the fence held."""
        return await self._writer.put(entry)

    async def run(self, hand: Hand) -> None:
        try:
            ending = await self._outcome(hand)
            hand.settling = True
            if ending is not None:
                await self._settle(hand, ending)
        except FencedOut:
            _LOG.warning("task %s was taken over; attempt %d ends unheard", hand.claim.id, hand.claim.attempt)
        finally:
            if hand.timer is not None:
                hand.timer.cancel()

    async def _outcome(self, hand: Hand) -> verdict.Verdict | Stop | None:
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

    async def _attempt(self, hand: Hand) -> verdict.Verdict:
        async with self._door.run(hand.claim) as stream:
            content_type = stream.fields.get("content-type", "")
            if stream.status != 200 or not content_type.startswith("text/event-stream"):
                body = await stream.body(self._settings.max_event_bytes)
                return verdict.judge_answer(
                    stream.status, content_type=content_type, body=body, retry_after=stream.fields.get("retry-after")
                )
            self._pacing.began(hand.claim.lane)
            return await self._follow(hand, stream)

    async def _follow(self, hand: Hand, stream: http1_kept.Connection) -> verdict.Verdict:
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

    async def _record(self, hand: Hand, events: Sequence[sse.Event]) -> None:
        """Take events for the log: written a moment later, or with the run's end. Waits for the write before."""
        await self._written(hand)
        hand.held += events
        if hand.held and hand.timer is None:
            hand.timer = asyncio.get_running_loop().call_later(_HOLD_S, self._flush, hand)

    def _flush(self, hand: Hand) -> None:
        """Send what is held on its way."""
        if hand.timer is not None:
            hand.timer.cancel()
            hand.timer = None
        if hand.held and hand.writing is None:
            claim, (events, progress, message) = hand.claim, self._take_held(hand)
            append = task_store.Append(task_id=claim.id, fence=claim.fence, events=events, progress=progress, message=message)
            hand.writing = self._writer.enqueue_now(append)
            hand.seq += len(events)  # even if this run is cancelled before it is committed

    async def _written(self, hand: Hand) -> None:
        """Wait for the write that is under way, if there is one."""
        if (writing := hand.writing) is None:
            return
        try:
            kept = await asyncio.shield(writing)
        except errors.NexusError:  # refused, and nothing of it is stored
            hand.writing, hand.seq = None, hand.stored
            raise
        hand.writing, hand.stored = None, hand.seq
        if not kept:
            raise FencedOut

    def _take_held(self, hand: Hand) -> tuple[tuple[task_store.TaskEvent, ...], float | None, str | None]:
        """The held events as they are stored, and what they say about progress."""
        progress, message = None, None
        for event in hand.held:
            percent, words = verdict.progress_of(event)
            progress, message = (progress if percent is None else percent), (words or message)
        stored = tuple(verdict.event_of(event, hand.seq + place) for place, event in enumerate(hand.held, 1))
        hand.held = []
        return stored, progress, message

    async def _settle(self, hand: Hand, ending: verdict.Verdict | Stop) -> None:
        try:
            await self._written(hand)
        except errors.NexusError as error:
            _LOG.warning("events of task %s cannot be stored: %s", hand.claim.id, error)
        write = self._write_of(hand, ending)
        if not isinstance(write, task_store.Finish):
            self._flush(hand)
        try:
            held = await self._writer.put(write)
        except (errors.Internal, errors.Invalid) as error:  # the store refuses this very result; the task must end all the same
            _LOG.exception("the result of task %s cannot be stored", hand.claim.id)
            held = await self._writer.put(self._write_of(hand, _fault(error)))
        if not held:
            raise FencedOut

    def _write_of(self, hand: Hand, ending: verdict.Verdict | Stop) -> task_store.Write:
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
            before, progress, message = self._take_held(hand)
            number = hand.seq + len(before) + 1
            return task_store.Finish(
                task_id=claim.id,
                fence=claim.fence,
                phase=ending.phase,
                event=task_store.TaskEvent(seq=number, name=f"run.{ending.phase}", data=ending.data),
                output=ending.output,
                metadata=ending.metadata,
                error=ending.error,
                before=before,
                progress=progress,
                message=message,
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
