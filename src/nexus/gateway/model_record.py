"""The last stages of a model call: told to its run's sums, and reported to control for history, metrics and the audit trail."""

import json

from nexus.gateway import usage
from nexus.gateway.model_call import ModelCall
from nexus.gateway.world import World
from nexus.wire import runs as wire_runs


def tell_run(call: ModelCall, world: World) -> None:
    """One more call of its run. The tokens were told while they came (`models_door`)."""
    if call.instance_id:
        world.ledger.add(call.instance_id, call.run_id, tokens=usage.Tokens(), calls=1, estimated=call.estimated)


def report(call: ModelCall, world: World) -> None:
    world.outbox.add(json.dumps(render(call), separators=(",", ":")).encode())


def render(call: ModelCall) -> wire_runs.ModelRecord:
    record = wire_runs.ModelRecord(
        kind="model",
        run_id=call.run_id,
        tenant=call.tenant,
        agent=call.agent,
        environment=call.environment,
        instance_id=call.instance_id,
        model=call.model,
        provider=call.provider,
        input_tokens=call.tokens.input,
        output_tokens=call.tokens.output,
        status=call.status,
        started_at=call.started_at,
        duration_s=round(call.duration_s, 6),
    )
    if call.estimated:
        record["estimated"] = True
    return record
