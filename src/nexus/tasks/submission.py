"""What a submission must be before it is stored. Pure, but for the webhook's name, which is resolved to be judged."""

import asyncio
import hashlib
import json
import re

from nexus.core import errors, ids, names
from nexus.kit import egress
from nexus.ports import task_store
from nexus.wire import params

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
) -> task_store.Submission:
    """A submission with a fresh id, or `Invalid`. A session is minted when none is named, so that attempts share one."""
    body = _body(request)
    asked = [lane.agent, lane.environment, request.webhook, request.session_id]
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
        max_attempts=max_attempts,
    )


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


async def settle_depth(cached: "Depths", tenant: str, *, most: int) -> None:
    """Nothing, or `Exhausted` (code `queue.full`) when the tenant has too many tasks waiting."""
    if await cached.of_tenant(tenant) >= most:
        raise errors.Exhausted(
            f"{most} tasks of this tenant wait already",
            code="queue.full",
            next_step="wait for tasks to finish, cancel some, or raise the deployment's replicas",
            retry_after_s=5.0,
        )


class Depths:
    """Queue depths, read again at most once a second; submissions in between are added up."""

    def __init__(self, store: task_store.TaskStore, *, fresh_s: float = 1.0) -> None:
        self._store = store
        self._fresh_s = fresh_s
        self._lanes: dict[task_store.Lane, int] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def lanes(self) -> dict[task_store.Lane, int]:
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if now - self._read_at >= self._fresh_s:
                self._lanes = await self._store.depths()
                self._read_at = now
        return self._lanes

    async def of_tenant(self, tenant: str) -> int:
        return sum(count for lane, count in (await self.lanes()).items() if lane.tenant == tenant)

    def add(self, lane: task_store.Lane) -> None:
        self._lanes[lane] = self._lanes.get(lane, 0) + 1
