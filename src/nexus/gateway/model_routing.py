"""Where a model call goes: the name it asks for becomes a chain of targets, best first; each attempt takes the next of them.

An alias (`RouteEntry`) may choose by order, weight or price, by rules on the call, by context length, and around providers that
fail. A model's own name leads to that model alone.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from nexus.core import errors
from nexus.gateway import breaker, model_estimate, model_translation
from nexus.gateway.model_call import ModelCall, Target
from nexus.gateway.model_prices import FREE, Rate, parse_rate
from nexus.gateway.usage import Tokens
from nexus.gateway.world import World
from nexus.wire import feed as wire_feed

THRESHOLD = 5
TAG = "tag:"


def resolve(call: ModelCall, world: World) -> None:
    """Fill `call.chain`. Raises `NotFound` (`model.not_found`) naming known models, `Invalid` (`model.dialect_unsupported`,
    `model.context_exceeded`)."""
    table = world.table
    call.input_estimate = model_estimate.prompt_tokens(call.body)
    for name in _names(call.requested, world):
        alias = table.model_routes.get(name)
        if alias is not None:
            call.model = name
            call.on = frozenset(alias["on"])
            call.chain = _plan_chain(call, alias, world)
            return
        target = find_target(name, world)
        if target is not None:
            call.model = name
            call.chain = [_checked(call, [target])[0]]
            return
    raise _unknown(call.requested, world)


def _names(asked: str, world: World) -> list[str]:
    default = world.table.default_model
    if asked == "default" and default and asked not in world.table.model_routes and asked not in world.table.models:
        return [default]  # not a name that a pattern for every model may take
    if asked and asked != "default" and world.table.refuse_unknown:
        return [asked]
    return [name for name in (asked, default) if name]


def choose(call: ModelCall, world: World) -> None:
    """Take the first target whose provider is not left alone at the moment."""
    now = world.loop.time()
    for place, target in enumerate(call.chain):
        if circuit_of(target, world).may_pass(THRESHOLD, now):
            call.chain.insert(0, call.chain.pop(place))
            call.target, call.attempts = target, 1
            return
    circuit = circuit_of(call.chain[0], world)
    raise errors.Unavailable(
        f"the provider {call.chain[0].provider} of model {call.model!r} failed {circuit.failures} times in a row; it is left "
        "alone for a moment",
        code="model.circuit_open",
        retry_after_s=max(1.0, circuit.open_until - now),
        next_step="try again after Retry-After, or give the alias a fallback: nexus models route set",
    )


def advance(call: ModelCall, world: World) -> bool:
    """Take the next target of the chain that may be tried; False when there is none."""
    now = world.loop.time()
    while call.attempts < len(call.chain):
        target = call.chain[call.attempts]
        call.attempts += 1
        if circuit_of(target, world).may_pass(THRESHOLD, now):
            call.target = target
            return True
    return False


def circuit_of(target: Target, world: World) -> breaker.Circuit:
    place = f"{target.address}#{target.provider}" if target.translated else target.address
    found = world.circuits.get(place)
    if found is None:
        found = world.circuits[place] = breaker.Circuit()
    return found


def find_target(name: str, world: World) -> Target | None:
    """The target a model's own name leads to, remembered as long as the table stands."""
    found = world.targets.get(name)
    if found is None:
        entry = wire_feed.resolve_model(world.table.models, name)
        if entry is None:
            return None
        if len(world.targets) > 5000:
            world.targets.clear()
        found = world.targets[name] = target_of(name, entry, world)
    return found


def target_of(name: str, entry: wire_feed.ModelEntry, world: World) -> Target:
    address, host, prefix = parse_base_url(entry["base_url"])
    options: dict[str, Any] = entry.get("options") or {}
    listed = world.table.prices.get(options.get("prices") or entry["provider"])
    line = listed.find(entry["upstream_model"]) if listed is not None else None
    rate: Rate | None = FREE if entry["provider"] == "local" else line.rate if line is not None else None
    if "price" in options:
        rate = parse_rate(options["price"])
    context = options.get("context") or (line.context if line is not None else None)
    return Target(
        name=name,
        entry=entry,
        upstream_model=entry["upstream_model"],
        address=address,
        host=host,
        prefix=prefix,
        rate=rate,
        context=None if context is None else int(context),
        timeout_s=float(options.get("timeout_s") or world.settings.model_timeout_s),
        first_byte_s=float(options.get("first_byte_s") or world.settings.model_timeout_s),
        retries=int(options.get("retries", 0)),
        batch=None if not options.get("batch") else (float(options["batch"]["window_s"]), int(options["batch"]["most"])),
        tags=frozenset(options.get("tags") or ()),
        translator=f"unix:{world.settings.home.model_socket('translator')}" if options.get("translate") else "",
    )


def _plan_chain(call: ModelCall, alias: wire_feed.RouteEntry, world: World) -> list[Target]:
    """Rule, choice, the other targets, fall-backs, last resort: each once, without those that cannot take the call."""
    names = [weighed["model"] for weighed in alias["targets"]]
    ruled = next((rule["use"] for rule in alias.get("rules") or () if _fits(rule, call)), None)
    if ruled is None and alias["choose"] == "weight":
        names = _draw(alias["targets"], world.draw())
    targets = [found for name in names if (found := find_target(name, world)) is not None]
    if alias["choose"] == "price":
        targets.sort(key=lambda target: _list_price(target, call))
    ends = [*alias["fallback"], alias.get("last_resort")]
    tail = [found for name in ends if name and (found := find_target(name, world)) is not None]
    head = [] if ruled is None else _ruled(ruled, [*targets, *tail], call, world)
    unique = list({target.name: target for target in (*head, *targets, *tail)}.values())
    if not unique:
        raise errors.NotFound(
            f"the alias {call.model!r} leads to no model that is here",
            code="model.not_found",
            cause="its targets are " + ", ".join(str(weighed["model"]) for weighed in alias["targets"]),
            next_step=f"nexus models route set {call.model} --to …, with names of nexus models list",
        )
    return _checked(call, unique)


def _ruled(use: str, targets: Sequence[Target], call: ModelCall, world: World) -> list[Target]:
    """What a rule chooses: a model by name, or the cheapest of the alias's own that has the tag (`tag:small`)."""
    if use.startswith(TAG):
        tagged = [target for target in targets if use.removeprefix(TAG) in target.tags]
        return sorted(tagged, key=lambda target: _list_price(target, call))
    found = find_target(use, world)
    return [] if found is None else [found]


def _draw(weighed: Sequence[dict[str, Any]], at: float) -> list[str]:
    """The names, the one that the draw fell on first."""
    left = at * sum(max(0, int(entry.get("weight", 1))) for entry in weighed)
    for place, entry in enumerate(weighed):
        left -= max(0, int(entry.get("weight", 1)))
        if left < 0:
            return [entry["model"], *(other["model"] for other in (*weighed[:place], *weighed[place + 1 :]))]
    return [entry["model"] for entry in weighed]


def _list_price(target: Target, call: ModelCall) -> float:
    """What the call would cost there, unknown prices last."""
    if target.rate is None:
        return float("inf")
    cap = model_estimate.output_cap(call.body)
    return target.rate.cost_nano(Tokens(call.input_estimate, cap[1] if cap else model_estimate.DEFAULT_OUTPUT))


def _fits(rule: dict[str, Any], call: ModelCall) -> bool:
    if "below_tokens" in rule and call.input_estimate >= int(rule["below_tokens"]):
        return False
    if "above_tokens" in rule and call.input_estimate <= int(rule["above_tokens"]):
        return False
    if rule.get("without_tools") and call.body.get("tools"):
        return False
    return rule.get("agent") in (None, call.agent) and rule.get("environment") in (None, call.environment)


def _checked(call: ModelCall, targets: list[Target]) -> list[Target]:
    """Those that speak the call's dialect and have room for its prompt, or the error that says why none does."""
    speaking = [found for target in targets if (found := model_translation.find_speaker(target, call)) is not None]
    if not speaking:
        able = ", ".join(targets[0].entry["dialects"]) or "none"
        raise errors.Invalid(
            f"the model {call.model!r} does not speak {call.dialect}",
            code="model.dialect_unsupported",
            cause=f"its provider {targets[0].provider} speaks {able}",
            next_step="use the other API, a model whose provider speaks this one, or set translate for the provider",
        )
    roomy = [target for target in speaking if target.context is None or call.input_estimate <= target.context]
    if not roomy:
        most = max(target.context or 0 for target in speaking)
        raise errors.Invalid(
            f"the prompt is too long for {call.model!r}",
            code="model.context_exceeded",
            cause=f"it is estimated at {call.input_estimate} tokens, and {most} fit",
            next_step="send less, or use an alias with a model of longer context, or one that trims (trim_to)",
        )
    return roomy


def _unknown(asked: str, world: World) -> errors.NotFound:
    names = sorted([*world.table.models, *world.table.model_routes])
    known = ", ".join(names[:20])
    return errors.NotFound(
        f"there is no model {(asked or 'default')[:80]!r} here",
        code="model.not_found",
        cause=f"the models are {known}" if known else "this host has no model",
        next_step="choose one of GET /v1/models, or run `nexus models pull`, or give control a provider's key",
    )


def parse_base_url(base_url: str) -> tuple[str, str, str]:
    """Address for the pool, Host header and path prefix of a model's `base_url`."""
    if base_url.startswith("unix:"):
        return base_url, "localhost", "/v1"
    parts = urlsplit(base_url)
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host:
        raise errors.Internal(f"the model's address {parts.scheme}://… cannot be used", code="model.bad_base_url")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    bracketed = f"[{host}]" if ":" in host else host
    shown = bracketed if parts.port is None else f"{bracketed}:{parts.port}"
    return f"{'tls' if secure else 'tcp'}:{bracketed}:{port}", shown, parts.path.rstrip("/")
