"""Takes the records gateways report: stored once however often they come, then counted. Also the verbs of run history."""

import hashlib
import json
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from nexus.core import errors, principals
from nexus.ports import run_store
from nexus.telemetry import metrics
from nexus.wire import runs, views

_LOG = logging.getLogger(__name__)
_TEXT = {
    "run": ("id", "tenant", "agent", "environment", "deployment_id", "version", "instance_id", "session_id", "principal", "mode",
            "outcome", "trace_id"),
    "model": ("run_id", "tenant", "agent", "environment", "instance_id", "model", "provider"),
}  # fmt: skip
_WHOLE = {"run": ("status", "bytes_in", "bytes_out"), "model": ("input_tokens", "output_tokens", "status")}
_TIME = ("started_at", "duration_s")
_FURTHER_TEXT = (
    "id", "principal", "version", "session_id", "user_id", "requested", "upstream_model", "path", "outcome", "code", "trace_id",
    "parent_span_id",
)  # fmt: skip
_FURTHER_WHOLE = ("cached_tokens", "cache_written_tokens", "reasoning_tokens", "cost_nano", "attempts")
_FURTHER_TRUE = ("estimated", "cached", "stream")
_BIGGEST = 2**53
_GROUP = 1000


Network = Callable[[str, Collection[str]], Awaitable[Mapping[str, tuple[int, int]]]]
"""An instance and its runs, to the bytes that each received and sent by its way out; nothing where there is none."""


class RecordSink:
    """`store` is what the feed server calls; it returns once the records are committed, so that it may acknowledge them.

    `traced` is given the model calls that were not known before. `network` tells what runs sent and received by themselves.
    """

    def __init__(
        self,
        *,
        store: run_store.RunStore,
        metrics: metrics.Metrics,
        traced: Callable[[Sequence[runs.ModelRecord]], None] | None = None,
    ) -> None:
        self.network: Network | None = None
        self._traced = traced
        self._store = store
        self._metrics = metrics

    async def store(self, records: Sequence[Any]) -> None:
        """Raises `Unavailable` when not all is stored. A malformed record is logged and left out: it would be so for ever."""
        for start in range(0, len(records), _GROUP):
            await self._store_group(records[start : start + _GROUP])

    async def _store_group(self, records: Sequence[Any]) -> None:
        run_records: dict[str, runs.RunRecord] = {}
        model_records: dict[str, runs.ModelRecord] = {}
        for record in records:
            parsed = parse_record(record)
            if parsed is None:
                _LOG.warning("a gateway reported something that is no record: %.200r", record)
            elif parsed["kind"] == "run":
                run_records[run_key(parsed)] = parsed
            elif parsed["provider"]:  # a call that led nowhere used nothing; the audit trail alone keeps it
                model_records[model_record_id(parsed)] = parsed
        if not run_records and not model_records:
            return
        if self.network is not None:
            await _add_network(list(run_records.values()), self.network)
        fresh = await self._store.add(list(run_records.values()), list(model_records.items()))
        self._metrics.count_runs([entry for key, entry in run_records.items() if key in fresh])
        calls = [entry for key, entry in model_records.items() if key in fresh]
        self._metrics.count_model_calls(calls)
        if self._traced is not None and calls:
            self._traced(calls)


async def _add_network(records: Sequence[runs.RunRecord], network: Network) -> None:
    """Where an instance cannot be asked, its runs are stored without."""
    by_instance: dict[str, list[runs.RunRecord]] = {}
    for record in records:
        by_instance.setdefault(record["instance_id"], []).append(record)
    for instance_id, mine in by_instance.items():
        try:
            found = await network(instance_id, [record["id"] for record in mine])
        except errors.NexusError as error:
            _LOG.debug("what runs of %s sent is not known: %s", instance_id, error.message)
            continue
        for record in mine:
            if (passed := found.get(record["id"])) is not None:
                record["network_in"], record["network_out"] = passed


class RunHistory:
    """`GET /v1/runs`: the past, newest first, of the caller's tenant."""

    def __init__(self, *, store: run_store.RunStore) -> None:
        self._store = store

    async def list(
        self,
        caller: principals.Principal,
        *,
        agent: str | None = None,
        environment: str | None = None,
        session_id: str | None = None,
        outcome: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> views.Page:
        caller.require(principals.Action.READ, agent=agent)
        if caller.environment is not None and environment not in (None, caller.environment):
            return views.Page(items=[])
        which = run_store.RunFilter(
            tenant=caller.tenant,
            agents=caller.agents if agent is None else frozenset({agent}),
            environment=environment or caller.environment,
            session_id=session_id,
            outcome=outcome,
            before=_parse_cursor(cursor),
            limit=limit + 1,
        )
        found = await self._store.runs(which)
        items: list[Any] = [render_run(run) for run in found[:limit]]
        return views.Page(items=items, next=_cursor_of(found[limit - 1].record) if len(found) > limit else None)

    async def show(self, caller: principals.Principal, run_id: str) -> views.RunView:
        """The latest attempt of this id, or `NotFound` (code `run.not_found`)."""
        caller.require(principals.Action.READ)
        found = await self._store.run(caller.tenant, run_id[:100])
        if (
            found is None
            or (caller.agents is not None and found.record["agent"] not in caller.agents)
            or caller.environment not in (None, found.record["environment"])
        ):
            raise errors.NotFound(f"there is no finished run {run_id[:64]!r}", code="run.not_found")
        return render_run(found)


def parse_record(value: Any) -> Any:
    """The record with every field there and of its type, or None."""
    if not isinstance(value, dict) or value.get("kind") not in _TEXT:
        return None
    kind = value["kind"]
    whole_ok = all(type(value.get(name)) is int and abs(value[name]) < _BIGGEST for name in _WHOLE[kind])
    times_ok = all(_is_finite(value.get(name)) for name in _TIME)
    if not (whole_ok and times_ok and all(isinstance(value.get(name), str) for name in _TEXT[kind])):
        return None
    cleaned = {name: _clean(value[name]) for name in _TEXT[kind]}
    parsed = {"kind": kind, **cleaned, **{name: value[name] for name in (*_WHOLE[kind], *_TIME)}}
    if kind == "run" and isinstance(code := value.get("code"), str) and code:
        parsed["code"] = _clean(code)
    cpu_s: Any = value.get("cpu_s")
    if kind == "run" and _is_finite(cpu_s) and 0 <= cpu_s < _BIGGEST:
        parsed["cpu_s"] = cpu_s
    return parsed if kind == "run" else parsed | _parse_further(value)


def _parse_further(value: Mapping[str, Any]) -> dict[str, Any]:
    """What a model record may hold besides; what is not of its type is left out."""
    found: dict[str, Any] = {name: _clean(value[name]) for name in _FURTHER_TEXT if isinstance(value.get(name), str)}
    found |= {name: value[name] for name in _FURTHER_WHOLE if type(value.get(name)) is int and 0 <= value[name] < _BIGGEST}
    found |= {name: True for name in _FURTHER_TRUE if value.get(name) is True}
    return found | ({"ttft_s": value["ttft_s"]} if _is_finite(value.get("ttft_s")) else {})


def run_key(record: runs.RunRecord) -> str:
    """One finished attempt: a task's attempts share their id and differ in when and where they ran."""
    return f"{record['id']}@{record['started_at']!r}@{record['instance_id']}"


def model_record_id(record: runs.ModelRecord) -> str:
    """The same for a record that is reported again."""
    if call_id := record.get("id"):
        return f"{record['tenant']}/{call_id}"
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def render_run(run: run_store.FinishedRun) -> views.RunView:
    record = run.record
    return views.RunView(
        id=record["id"],
        agent=record["agent"],
        environment=record["environment"],
        version=record["version"],
        instance_id=record["instance_id"],
        session_id=record["session_id"],
        mode=record["mode"],
        outcome=record["outcome"],
        status=record["status"],
        code=record.get("code"),
        started_at=record["started_at"],
        duration_s=record["duration_s"],
        input_tokens=run.input_tokens,
        output_tokens=run.output_tokens,
        cost=None if run.cost_nano is None else run.cost_nano / 1e9,
        trace_id=record["trace_id"],
        bytes_in=record["bytes_in"],
        bytes_out=record["bytes_out"],
        cpu_s=record.get("cpu_s"),
        network_in=record.get("network_in"),
        network_out=record.get("network_out"),
    )


def _cursor_of(record: run_store.Record) -> str:
    return f"{record['started_at']!r}~{record['id']}"


def _parse_cursor(cursor: str | None) -> tuple[float, str] | None:
    if cursor is None:
        return None
    at, _, run_id = cursor.partition("~")
    try:
        moment = float(at)
    except ValueError:
        moment = math.nan
    if not math.isfinite(moment) or not run_id or len(cursor) > 200 or "\0" in cursor:
        raise errors.Invalid("this cursor is not one of ours", code="request.invalid", next_step="pass `next` of the last page")
    return moment, run_id


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _clean(text: str) -> str:
    return text[:512].replace("\0", "").encode("utf-8", "replace").decode()
