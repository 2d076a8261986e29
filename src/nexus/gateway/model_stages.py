"""The way of a model call, as two visible lists. A stage is a function of the call and the world.

`BEFORE` runs in order when the body is whole. A stage may raise a typed error, which is the answer, or set `call.ready`, which is
the answer too and skips what follows. Then the call is sent (`model_sending`), to the next target of its chain if need be.
`AFTER` runs in order, exactly once, for every call that was resolved: answered, refused by a later stage, cut or abandoned.
No stage waits; none does I/O. How to add one: docs/explain/models.md.
"""

from collections.abc import Callable

from nexus.gateway import (
    model_audit,
    model_cache,
    model_embeddings,
    model_policy,
    model_record,
    model_request,
    model_reserve,
    model_routing,
    model_stop,
    model_trim,
)
from nexus.gateway.model_call import ModelCall
from nexus.gateway.world import World

Stage = Callable[[ModelCall, World], None]

BEFORE: tuple[Stage, ...] = (
    model_stop.check,
    model_policy.find,
    model_trim.trim,
    model_routing.resolve,
    model_routing.choose,
    model_cache.look,
    model_embeddings.look,
    model_reserve.reserve,
    model_request.ask_for_usage,
    model_audit.decide,
)
AFTER: tuple[Stage, ...] = (
    model_reserve.price,
    model_reserve.settle,
    model_record.tell_run,
    model_cache.keep,
    model_embeddings.keep,
    model_record.report,
)


def run_before(call: ModelCall, world: World) -> None:
    """Every stage until one raises or answers."""
    for stage in BEFORE:
        stage(call, world)
        if call.ready is not None:
            return


def run_after(call: ModelCall, world: World) -> None:
    for stage in AFTER:
        stage(call, world)
