"""Money before and after: what a call may cost is reserved in every budget that binds it, and settled when it has ended.

Looking at what is left and taking it is one step for all gateway processes (`model_spend`), so parallel calls cannot overshoot.
A call that names the most it may give is cut to what is left of the tightest budget; one that does not reserves a usual answer,
and a stream that grows beyond it reserves more as it goes, or ends.
"""

import json
from dataclasses import dataclass

from nexus.core import errors
from nexus.gateway import model_budget, model_estimate
from nexus.gateway.model_budget import Budget, Shortage
from nexus.gateway.model_call import COUNTING, EMBEDDINGS, ModelCall, Target
from nexus.gateway.model_prices import Rate
from nexus.gateway.model_spend import Meter
from nexus.gateway.usage import Tokens
from nexus.gateway.world import World

LEAST_OUTPUT = 64
_STEP = 1024
_MOST_OUTPUT = 10_000_000
"""Nobody answers with more, whatever a call allows; so sums stay within what the ledger can hold."""


@dataclass(slots=True, kw_only=True)
class Hold:
    """What a call has reserved of one budget, at its place in the ledger."""

    budget: Budget
    subject: str
    meter: Meter
    place: int
    amount: int


def reserve(call: ModelCall, world: World) -> None:
    """Take from every budget, or from none. Where the route says so, a target that is too dear gives way to the next."""
    if call.path == COUNTING:
        return
    while True:
        try:
            _reserve_for(call, world)
            return
        except errors.Exhausted:
            if "quota" not in call.on or call.attempts >= len(call.chain):
                raise
        call.target = call.chain[call.attempts]
        call.attempts += 1


def _reserve_for(call: ModelCall, world: World) -> None:
    now, target = world.clock(), call.target
    bound = _bound(call, world)
    if target is None or not bound:
        return
    rate = _rate_of(target, [budget for budget, _ in bound])
    cap = model_estimate.output_cap(call.body)
    many = model_estimate.choices(call.body)
    asked = 0 if call.path == EMBEDDINGS else min(_MOST_OUTPUT, many * (cap[1] if cap else model_estimate.DEFAULT_OUTPUT))
    meters = [(budget, subject, budget.meter(subject, now)) for budget, subject in bound]
    lack: Shortage | None = None
    with world.spend.locked():
        output = asked
        for budget, subject, meter in meters:
            spent, reserved = world.spend.read(meter, now)
            given = min(output, asked)
            if spent + reserved + _need(budget.unit, call.input_estimate, given, rate) <= budget.limit:
                continue
            output = _affordable(budget.unit, budget.limit - spent - reserved, call.input_estimate, rate)
            if output < min(asked, LEAST_OUTPUT * many) or asked == 0:
                wanted = _need(budget.unit, call.input_estimate, min(asked, LEAST_OUTPUT * many), rate)
                lack = Shortage(budget=budget, subject=subject, spent=spent, reserved=reserved, wanted=wanted)
                break
        if lack is None:
            output = min(output, asked)
            for budget, subject, meter in meters:
                amount = _need(budget.unit, call.input_estimate, output, rate)
                place = world.spend.take(meter, amount, now)
                call.holds.append(Hold(budget=budget, subject=subject, meter=meter, place=place, amount=amount))
        else:
            _note_refusal(call, lack, meters, world, now)
    if lack is not None:
        raise model_budget.refusal(lack, now)
    call.output_reserved = output
    if cap is not None and output < asked:
        call.body[cap[0]] = max(1, output // many)
        call.capped = call.body[cap[0]]
        call.changed = True


def _note_refusal(call: ModelCall, lack: Shortage, meters: list[tuple[Budget, str, Meter]], world: World, now: float) -> None:
    """A budget that refuses while nothing is under way is used up, although its last crumbs are not spent."""
    if lack.reserved == 0:
        meter = next(meter for budget, _, meter in meters if budget is lack.budget)
        place = world.spend.take(meter, 0, now)
        hold = Hold(budget=lack.budget, subject=lack.subject, meter=meter, place=place, amount=0)
        _tell(hold, lack.spent, call, world, used_up=True)


def _bound(call: ModelCall, world: World) -> list[tuple[Budget, str]]:
    found = []
    for budget in world.table.budgets.get(call.tenant, ()):
        subject = budget.subject_of(call)
        if subject is not None:
            found.append((budget, subject))
    return found


def _rate_of(target: Target, budgets: list[Budget]) -> Rate:
    """The target's price. A budget of money cannot be kept where the price is not known, so such a call is refused."""
    if target.rate is not None:
        return target.rate
    if any(budget.unit == "cost" for budget in budgets):
        raise errors.Forbidden(
            f"the price of {target.upstream_model!r} at {target.provider} is not known, and a budget of money binds this call",
            code="model.price_unknown",
            next_step=f"give it one: nexus models price set {target.provider} {target.upstream_model} --input … --output …",
        )
    return Rate()


def _need(unit: str, given: int, made: int, rate: Rate) -> int:
    if unit == "requests":
        return 1
    return given + made if unit == "tokens" else rate.cost_nano(Tokens(given, made))


def _affordable(unit: str, left: int, given: int, rate: Rate) -> int:
    """How many tokens of output so much pays for; negative when not even the input."""
    if unit == "requests":
        return 1 << 40 if left >= 1 else -1
    if unit == "tokens":
        return left - given
    spare = left - rate.cost_nano(Tokens(given, 0))
    one = rate.cost_nano(Tokens(given, 1_000_000)) - rate.cost_nano(Tokens(given, 0))
    return -1 if spare < 0 else 1 << 40 if one <= 0 else spare * 1_000_000 // one


def release(call: ModelCall, world: World) -> None:
    """Give everything back: the call goes elsewhere, and reserves anew."""
    if not call.holds:
        return
    with world.spend.locked():
        for hold in call.holds:
            world.spend.add(hold.place, -hold.amount)
    call.holds.clear()


def extend(call: ModelCall, made: int, world: World) -> None:
    """A stream has given `made` tokens: reserve more before it exceeds what it holds. Raises `Exhausted` when there is none."""
    if not call.holds or made < call.output_reserved or call.target is None:
        return
    rate = call.target.rate or Rate()
    before = call.output_reserved
    now = world.clock()
    lack: Shortage | None = None
    with world.spend.locked():
        for hold in call.holds:
            spent, reserved = world.spend.read(hold.meter, now)
            more = _more(hold.budget.unit, call, before, before + _STEP, rate)
            if spent + reserved + more > hold.budget.limit:
                others, mine = reserved - hold.amount, spent + hold.amount
                lack = Shortage(budget=hold.budget, subject=hold.subject, spent=mine, reserved=others, wanted=more, begun=True)
                break
        if lack is None:
            for hold in call.holds:
                more = _more(hold.budget.unit, call, before, before + _STEP, rate)
                world.spend.add(hold.place, more)
                hold.amount += more
    if lack is not None:
        raise model_budget.refusal(lack, now)
    call.output_reserved = before + _STEP


def _more(unit: str, call: ModelCall, before: int, after: int, rate: Rate) -> int:
    return _need(unit, call.input_estimate, after, rate) - _need(unit, call.input_estimate, before, rate)


def price(call: ModelCall, world: World) -> None:
    """Set the cost of what was used."""
    if call.target is not None and call.target.rate is not None and call.attempted:
        used = call.tokens.input or call.tokens.output
        call.cost_nano = call.target.rate.cost_nano(call.tokens) if used else 0


def settle(call: ModelCall, world: World) -> None:
    """Count what was used in place of what was reserved, and tell whoever is to be warned."""
    if not call.holds:
        return
    crossed: list[tuple[Hold, int]] = []
    with world.spend.locked():
        for hold in call.holds:
            used = _used(hold.budget.unit, call)
            spent = world.spend.settle(hold.place, reserved=hold.amount, used=used)
            if used:
                crossed.append((hold, spent))
        for hold, spent in crossed:
            _tell(hold, spent, call, world)
    call.holds.clear()


def _used(unit: str, call: ModelCall) -> int:
    if unit == "requests":
        return 1 if call.attempted else 0
    return call.tokens.input + call.tokens.output if unit == "tokens" else call.cost_nano or 0


def _tell(hold: Hold, spent: int, call: ModelCall, world: World, *, used_up: bool = False) -> None:
    """One notice for each threshold that was passed, from whichever process sees it first. Called with the ledger locked."""
    budget = hold.budget
    for level, percent in enumerate(budget.warn):
        passed = spent * 100 >= percent * budget.limit or (used_up and percent >= 100)
        if passed and world.spend.tell_once(hold.place, level):
            notice = {
                "kind": "budget",
                "tenant": budget.tenant,
                "budget": budget.id,
                "scope": budget.scope,
                "subject": hold.subject,
                "agent": call.agent,
                "unit": budget.unit,
                "period": budget.period,
                "percent": percent,
                "limit": budget.limit,
                "spent": spent,
                "window_ends": hold.meter.ends,
                "at": world.clock(),
            }
            world.outbox.add(json.dumps(notice, separators=(",", ":")).encode())
