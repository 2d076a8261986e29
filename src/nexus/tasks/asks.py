"""Questions of tasks to people: opened by runs through their door, answered by callers or by whoever has a signed link.

`Asks` is an async context manager; its loop lets questions expire whose time is over, on every node.
"""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import jsonschema_rs

from nexus.core import deployments, errors, ids, principals
from nexus.core.phases import is_terminal
from nexus.kit import clock as clocks
from nexus.kit import guard
from nexus.ports import ask_store, task_store
from nexus.tasks import links, recordings, verdict, views
from nexus.wire import views as wire_views

_LOG = logging.getLogger(__name__)
MAX_QUESTION_BYTES = 256 * 1024
MAX_ANSWER_BYTES = 64 * 1024
MOST_ASKS = 1000
LONGEST_S = 10 * 366 * 86400.0
_KEY = re.compile(r"ask/[\x21-\x7e]{1,200}/\d{1,6}")
_REGEX = jsonschema_rs.RegexOptions()  # linear in time, whatever pattern an author wrote
_AT_ONCE = 100


class Asks:
    """`key` signs the links; `origin` is where people reach this host."""

    def __init__(
        self,
        *,
        store: ask_store.AskStore,
        key: bytes,
        origin: str,
        clock: clocks.Clock,
        resumed: Callable[[], None] = lambda: None,
        poll_s: float = 1.0,
    ) -> None:
        self._store = store
        self._key = key
        self._origin = origin.rstrip("/")
        self._clock = clock
        self._resumed = resumed
        self._poll_s = poll_s
        self._life = AsyncExitStack()

    async def __aenter__(self) -> Self:
        loops = await self._life.enter_async_context(guard.Loops())
        loops.start("asks", self._loop)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._life.aclose()

    async def open(
        self, owner: deployments.InstanceOwner, task_id: str, *, key: str, attempt: int, body: bytes
    ) -> dict[str, Any]:
        """What the worker is told: `{"status": "open"|"answered"|"expired", "ask_id", …}`."""
        if not ids.is_id(task_id, ids.TASK) or not _KEY.fullmatch(key):
            raise errors.Invalid("this is not the place of a question", code="ask.invalid_place")
        lane = task_store.Lane(tenant=owner.tenant, agent=owner.agent, environment=owner.environment)
        place = ask_store.Place(lane=lane, task_id=task_id, attempt=attempt, key=key, session_id=owner.session_id)
        opened = await self._store.open(place, parse_question(body), most=MOST_ASKS)
        if opened is None:
            raise recordings.diverged("question")
        ask = opened.ask
        told: dict[str, Any] = {"status": ask.status, "ask_id": ask.id, "fresh": opened.fresh, "unused": opened.unused}
        if ask.status == "answered":
            told["answer"] = json.loads(ask.answer or "null")
        elif ask.status == "open":
            told |= {"expires_at": ask.expires_at, "choices": json.loads(ask.shape).get("choices")}
        return told

    async def answer(
        self, caller: principals.Principal, task_id: str, answer: Any, *, ask_id: str | None = None
    ) -> wire_views.AskView:
        """Answer the question of a task; `ask_id` may be left out when it asks one."""
        asked = await self._of_task(caller, task_id)
        for each in asked[:1]:
            caller.require(principals.Action.RUN, agent=each.lane.agent)
        if ask_id is not None:
            chosen = next((each for each in asked if each.id == ask_id), None)
        else:
            waiting = [each for each in asked if each.status == "open"]
            if len(waiting) > 1:
                raise errors.Conflict(
                    f"task {task_id} asks {len(waiting)} questions",
                    code="ask.ambiguous",
                    cause=", ".join(each.id for each in waiting[:10]),
                    next_step="say which one with ask_id",
                )
            chosen = waiting[0] if waiting else None
        if chosen is None:
            raise errors.NotFound(
                f"task {task_id[:64]!r} asks nothing" + (f" under {ask_id[:64]!r}" if ask_id else ""),
                code="ask.not_found",
                next_step=f"nexus ai agent task asks {task_id[:64]}",
            )
        return await self._settle(chosen, answer, by=caller.id)

    async def answer_by_link(self, token: str, answer: Any) -> wire_views.AskView:
        return await self._settle(await self._by_link(token), answer, by="link")

    async def look_by_link(self, token: str) -> wire_views.AskView:
        """What the holder of a link may see of the question. `NotFound` (`ask.link_invalid`) when it is none of ours."""
        ask = await self._by_link(token)
        if is_terminal(ask.task_phase) and ask.status == "open":
            raise _over(ask)
        return views.render_ask(ask)

    async def list(
        self, caller: principals.Principal, *, agent: str | None = None, task_id: str | None = None, limit: int = 100
    ) -> list[wire_views.AskView]:
        """All questions of one task, or the open ones of all tasks, oldest first. Links are for those who may answer."""
        if task_id is not None:
            asked = await self._of_task(caller, task_id)
        else:
            caller.require(principals.Action.READ, agent=agent)
            agents = caller.agents if agent is None else frozenset({agent})
            asked = await self._store.page(
                caller.tenant, agents=agents, environment=caller.environment, task_id=None, limit=limit
            )
        return [views.render_ask(each, url=self._link_for(caller, each)) for each in asked]

    def url_of(self, ask: ask_store.Ask) -> str:
        token = links.sign(self._key, ask.id, opened_at=ask.opened_at, expires_at=ask.expires_at)
        return f"{self._origin}/asks/{token}"

    async def expire(self) -> int:
        """Let questions expire whose time is over, once. How many."""
        count = 0
        for ask in await self._store.overdue(limit=_AT_ONCE):
            event = verdict.text_of({"ask_id": ask.id})
            settled = await self._store.settle(ask.lane.tenant, ask.id, answer=None, by="", event=event)
            count += settled is not None and settled[1]
        if count:
            self._resumed()
        return count

    async def _of_task(self, caller: principals.Principal, task_id: str) -> Sequence[ask_store.Ask]:
        caller.require(principals.Action.READ)
        if not ids.is_id(task_id, ids.TASK):
            return []
        return await self._store.page(
            caller.tenant, agents=caller.agents, environment=caller.environment, task_id=task_id, limit=MOST_ASKS
        )

    def _link_for(self, caller: principals.Principal, ask: ask_store.Ask) -> str | None:
        able = ask.status == "open" and caller.may(principals.Action.RUN, agent=ask.lane.agent)
        return self.url_of(ask) if able else None

    async def _by_link(self, token: str) -> ask_store.Ask:
        ask_id = links.read(self._key, token[:300], now=self._clock.time())
        ask = None if ask_id is None else await self._store.fetch(ask_id, tenant=None)
        if ask is None:
            raise errors.NotFound(
                "this link leads to no question", code="ask.link_invalid", next_step="ask for a new one; links end after 30 days"
            )
        return ask

    async def _settle(self, ask: ask_store.Ask, answer: Any, *, by: str) -> wire_views.AskView:
        if ask.status == "open":
            text = check_answer(ask, answer)
            event = verdict.text_of({"ask_id": ask.id, "answer": answer, "by": by})
            settled = await self._store.settle(ask.lane.tenant, ask.id, answer=text, by=by, event=event)
            if settled is not None:
                ask, changed = settled
                if changed:
                    self._resumed()
                    return views.render_ask(ask)
        if ask.status == "open":
            raise _over(ask)
        if ask.status == "answered" and ask.answered_by == by != "link" and ask.answer == verdict.text_of(answer):
            return views.render_ask(ask)
        raise errors.Conflict(
            f"question {ask.id} {'has been answered already' if ask.status == 'answered' else 'is open no more'}",
            code="ask.settled",
            cause=f"it is {ask.status}",
            next_step=f"nexus ai agent task status {ask.task_id}",
        )

    async def _loop(self) -> None:
        while True:
            try:
                await self.expire()
            except errors.Unavailable as error:
                _LOG.warning("questions cannot be looked at: %s", error.cause or error)
            await asyncio.sleep(self._poll_s)


def parse_question(body: bytes) -> ask_store.Question:
    """What a worker sent, or `Invalid` (`ask.invalid`) saying what is wrong with it."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _invalid("it is not JSON", error) from None
    if not isinstance(value, dict) or not isinstance(value.get("question"), str) or len(body) > MAX_QUESTION_BYTES:
        raise _invalid(f"a question is text of at most {MAX_QUESTION_BYTES} bytes with all that belongs to it")
    choices, timeout_s = value.get("choices"), value.get("timeout_s")
    if choices is not None and (not isinstance(choices, list) or not 1 <= len(choices) <= 1000):
        raise _invalid("choices are a list of 1 to 1000 values")
    known = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool) and 0 < timeout_s <= LONGEST_S
    if timeout_s is not None and not known:
        raise _invalid("its timeout is not a number of seconds above 0")
    shape = {name: value[name] for name in ("choices", "schema", "default") if value.get(name) is not None}
    if "schema" in shape:
        _validator(shape["schema"])
    return ask_store.Question(
        id=ids.new_id(ids.ASK), text=_plain(value["question"]), shape=verdict.text_of(shape), timeout_s=timeout_s
    )


def check_answer(ask: ask_store.Ask, answer: Any) -> str:
    """The answer as JSON text, or `Invalid` (`ask.invalid_answer`) saying which answers are taken."""
    try:
        text = json.dumps(answer, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise errors.Invalid("the answer is not JSON", code="ask.invalid_answer", cause=str(error)[:200]) from None
    if len(text) > MAX_ANSWER_BYTES:
        raise errors.Invalid(f"an answer may have {MAX_ANSWER_BYTES} bytes", code="ask.invalid_answer")
    shape = json.loads(ask.shape)
    choices = shape.get("choices")
    if choices is not None and text not in [json.dumps(choice, separators=(",", ":")) for choice in choices]:
        raise errors.Invalid(
            "this is not one of the answers to choose from",
            code="ask.invalid_answer",
            cause="they are " + ", ".join(json.dumps(choice) for choice in choices[:20]),
        )
    if "schema" in shape:
        try:
            _validator(shape["schema"]).validate(answer)
        except jsonschema_rs.ValidationError as error:
            where = "/".join(str(part) for part in error.instance_path)
            cause = (f"{where}: " if where else "") + error.message
            raise errors.Invalid(
                "this answer does not have the form asked for", code="ask.invalid_answer", cause=cause[:500]
            ) from None
    return text


def _validator(schema: Any) -> Any:
    """No schema is fetched from anywhere."""
    try:
        return jsonschema_rs.validator_for(schema, offline=True, pattern_options=_REGEX)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(
            "the question's schema cannot be used", code="ask.invalid_schema", cause=str(error).split("\n", 1)[0][:300]
        ) from None


def _plain(text: str) -> str:
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _invalid(why: str, error: Exception | None = None) -> errors.Invalid:
    return errors.Invalid("this question cannot be asked", code="ask.invalid", cause=why if error is None else f"{why}: {error}")


def _over(ask: ask_store.Ask) -> errors.Conflict:
    return errors.Conflict(
        f"task {ask.task_id} is over",
        code="task.finished",
        cause=f"it is {ask.task_phase}",
        next_step="nothing waits for an answer",
    )
