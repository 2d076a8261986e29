"""The last stages of a model call: told to its run's sums, and reported to control for history, metrics and the audit trail."""

import json

from nexus.gateway import model_audit, usage
from nexus.gateway.model_call import ModelCall
from nexus.gateway.world import World
from nexus.wire import runs as wire_runs

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


def tell_run(call: ModelCall, world: World) -> None:
    """One more call of its run. The tokens were told while they came (`models_door`)."""
    if call.instance_id:
        world.ledger.add(
            call.instance_id, call.run_id, tokens=usage.Tokens(), calls=1, estimated=call.estimated, cost_nano=call.cost_nano or 0
        )


def report(call: ModelCall, world: World) -> None:
    record = {**render(call), **model_audit.render_content(call, world)}
    world.outbox.add(_ENCODE(record).encode())


def render(call: ModelCall) -> wire_runs.ModelRecord:
    record = wire_runs.ModelRecord(
        kind="model",
        id=call.id,
        run_id=call.run_id,
        tenant=call.tenant,
        principal=call.principal,
        agent=call.agent,
        environment=call.environment,
        instance_id=call.instance_id,
        model=call.target.name if call.target is not None else call.model,
        provider=call.provider,
        path=call.path[len(b"/v1/") :].decode("latin-1"),
        dialect=call.dialect,
        input_tokens=call.tokens.input,
        output_tokens=call.tokens.output,
        outcome=call.outcome,
        status=call.status,
        started_at=call.started_at,
        duration_s=round(call.duration_s, 6),
    )
    target, tokens, ttft_s = call.target, call.tokens, call.ttft_s
    further = {
        "version": call.version,
        "session_id": call.session_id,
        "user_id": call.user_id,
        "requested": call.requested[:256] if target is None or call.requested != target.name else "",
        "upstream_model": target.upstream_model if target is not None else "",
        "cached_tokens": tokens.cached,
        "cache_written_tokens": tokens.cache_written,
        "reasoning_tokens": tokens.reasoning,
        "attempts": call.attempts,
        "ttft_s": None if ttft_s is None else round(ttft_s, 6),
        "cached": call.cached,
        "code": call.code,
        "estimated": call.estimated,
        "trace_id": call.trace_id,
        "parent_span_id": call.traceparent[36:52].decode("ascii") if call.trace_id else "",
        "stream": call.streaming,
    }
    record.update({name: value for name, value in further.items() if value})  # type: ignore[typeddict-item]
    if call.cost_nano is not None:
        record["cost_nano"] = call.cost_nano
    return record
