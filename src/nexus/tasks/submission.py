"""What a submission must be before it is stored. Pure, but for the webhook's name, which is resolved to be judged."""

import asyncio
import hashlib
import json
import math
import re

from nexus.core import errors, ids, names
from nexus.kit import egress
from nexus.ports import task_store
from nexus.tasks.settings import TaskPolicy
from nexus.wire import params

NO_POLICY = TaskPolicy()
MAX_BODY_BYTES = 16 * 1024 * 1024
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def plan_submission(
    lane: task_store.Lane,
    request: params.SubmitParams,
    *,
    principal: str,
    idempotency_key: str | None,
    traceparent: str | None,
    max_attempts: int,
    policy: TaskPolicy = NO_POLICY,
) -> task_store.Submission:
    """A submission with a fresh id, or `Invalid`. A session is minted when none is named, so that attempts share one."""
    body = _body(request)
    asked = [lane.agent, lane.environment, request.webhook, request.session_id, *_wishes(request)]
    return task_store.Submission(
        id=ids.new_id(ids.TASK),
        lane=lane,
        principal=principal,
        body=body,
        digest=hashlib.sha256(json.dumps(asked).encode() + b"\0" + body).hexdigest(),
        session_id=_session(request.session_id),
        webhook_url=request.webhook,
        idempotency_key=_idempotency_key(idempotency_key),
        traceparent=traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else None,
        max_attempts=request.max_attempts or policy.max_attempts or max_attempts,
        priority=request.priority,
        delay_s=request.delay,
        run_at=_moment(request),
        queue_timeout_s=request.queue_timeout or policy.queue_timeout_s,
        run_timeout_s=_shorter(request.run_timeout, policy.run_timeout_s),
        total_timeout_s=request.total_timeout or policy.total_timeout_s,
        retry=policy.retry,
        share="" if policy.per_key is None else principal,
        share_most=policy.per_key,
    )


def _wishes(request: params.SubmitParams) -> list[str]:
    """What else was asked for, as it stands in the digest: nothing for a request of the plainest kind."""
    given = request.model_dump(mode="json", exclude_defaults=True, exclude={"input", "context", "webhook", "session_id"})
    given.pop("idempotency_key", None)
    return [json.dumps(given, sort_keys=True)] if given else []


def _moment(request: params.SubmitParams) -> float | None:
    if request.run_at is None:
        return None
    if request.delay is not None:
        raise errors.Invalid(
            "a task starts after `delay` or at `run_at`, not both", code="task.start_twice", next_step="leave one of them out"
        )
    try:
        return request.run_at.timestamp()
    except (OverflowError, ValueError):
        raise errors.Invalid("this run_at cannot be used", code="task.invalid_start") from None


def _shorter(asked: float | None, configured: float | None) -> float | None:
    """A caller may shorten what the agent's author allows, not lengthen it."""
    given = [value for value in (asked, configured) if value is not None]
    return min(given) if given else None


async def check_webhook(url: str, allowance: egress.Allowance) -> None:
    """Nothing, or `Invalid` (code `webhook.url_refused`) saying why the URL will not be called."""
    try:
        await egress.resolve(egress.parse_url(url), allowance)
    except egress.Refused as error:
        raise _refused(str(error)) from None
    except (OSError, TimeoutError) as error:
        raise _refused(f"its host name does not resolve ({type(error).__name__})") from None


def _refused(why: str) -> errors.Invalid:
    return errors.Invalid(
        "this webhook URL is refused",
        code="webhook.url_refused",
        cause=why,
        next_step="name a public http(s) URL, or have the operator put the address or range into NEXUS_EGRESS_ALLOW",
    )


def _body(request: params.SubmitParams) -> bytes:
    try:
        body = json.dumps({"input": request.input, "context": request.context}, ensure_ascii=True, allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        raise errors.Invalid("the input is not JSON", code="body.invalid_json", cause=str(error)[:200]) from None
    except RecursionError:
        raise errors.Invalid("the input is nested too deeply", code="body.too_deep") from None
    if len(body) > MAX_BODY_BYTES:
        raise errors.Invalid(
            f"the input is larger than {MAX_BODY_BYTES} bytes",
            code="body.too_large",
            next_step="put the data where the agent can fetch it and send its address",
        )
    return body


def _session(session_id: str | None) -> str:
    if session_id is None:
        return ids.new_id(ids.SESSION)
    if not names.is_session_id(session_id):
        raise errors.Invalid(
            "this session id cannot be used", code="session.invalid_id", cause="a session id is 1 to 256 of A-Z a-z 0-9 . _ : @ -"
        )
    return session_id


def _idempotency_key(key: str | None) -> str | None:
    if key is not None and not _KEY.fullmatch(key):
        raise errors.Invalid(
            "this Idempotency-Key cannot be used",
            code="idempotency.invalid_key",
            cause="a key is 1 to 255 printable ASCII letters",
        )
    return key


async def settle_depth(
    cached: "Depths", lane: task_store.Lane, *, most: int, most_of_lane: int | None = None, count: int = 1
) -> None:
    """Nothing, or `Exhausted` (code `queue.full`) when too many tasks of the tenant, or of this agent, wait already.

    `Retry-After` says when there will be room if the queue goes on as in the last minute.
    """
    depths = await cached.lanes()
    of_tenant = sum(depth.all for other, depth in depths.items() if other.tenant == lane.tenant)
    of_lane = depths.get(lane, task_store.Depth()).all
    for waiting, bound, whose in ((of_tenant, most, "this tenant"), (of_lane, most_of_lane, f"agent {lane.agent!r}")):
        if bound is not None and waiting + count > bound:
            ended = await cached.ended_in_a_minute(lane.tenant)
            raise errors.Exhausted(
                f"{waiting} tasks of {whose} wait already; {bound} may",
                code="queue.full",
                cause=f"{ended} tasks ended in the last minute",
                next_step="wait for tasks to finish, cancel some, or raise the deployment's replicas",
                retry_after_s=plan_retry_after(waiting + count - bound, ended=ended),
            )


def plan_retry_after(excess: int, *, ended: int) -> float:
    """Seconds until so many tasks will have left the queue, at the rate of the last minute; between 1 s and an hour."""
    if ended <= 0:
        return 60.0
    return float(min(3600, max(1, math.ceil(excess * 60 / ended))))


class Depths:
    """Queue depths, read again at most once a second; submissions in between are added up."""

    def __init__(self, store: task_store.TaskStore, *, fresh_s: float = 1.0) -> None:
        self._store = store
        self._fresh_s = fresh_s
        self._lanes: dict[task_store.Lane, task_store.Depth] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._ended: dict[str, tuple[float, int]] = {}

    async def lanes(self) -> dict[task_store.Lane, task_store.Depth]:
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if now - self._read_at >= self._fresh_s:
                self._lanes = await self._store.depths()
                self._read_at = now
        return self._lanes

    async def ended_in_a_minute(self, tenant: str) -> int:
        now = asyncio.get_running_loop().time()
        at, count = self._ended.get(tenant, (float("-inf"), 0))
        if now - at >= self._fresh_s:
            count = await self._store.finished_within(tenant, 60.0)
            self._ended[tenant] = (now, count)
        return count

    def add(self, lane: task_store.Lane, *, count: int = 1, due: bool = True) -> None:
        known = self._lanes.get(lane, task_store.Depth())
        self._lanes[lane] = task_store.Depth(due=known.due + (count if due else 0), all=known.all + count)
