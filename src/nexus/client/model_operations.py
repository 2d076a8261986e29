"""Operations on models: where calls go, what they may cost, and what they did; see `operations`."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from nexus.client import answers
from nexus.client.calls import Call, Operation, ask


def settings() -> Operation[answers.Answer]:
    """Models, providers, aliases, prices, and what is wrong with them."""
    reply = yield from ask(Call(method="GET", path="/v1/model-settings"))
    return answers.Answer(reply.object())


def set_provider(name: str, provider: Mapping[str, Any], *, key: str | None = None) -> Operation[None]:
    """`provider` as in `models.yaml`. `key` is stored encrypted; None: the one that is stored stays."""
    body = {"provider": dict(provider), **({"key": key} if key is not None else {})}
    yield from ask(Call(method="PUT", path=_path("providers", name), json=body))


def remove_provider(name: str) -> Operation[None]:
    yield from ask(Call(method="DELETE", path=_path("providers", name)))


def set_route(name: str, to: Sequence[str | Mapping[str, Any]], **fields: Any) -> Operation[answers.Answer]:
    """An alias: `to` is `["gpt-5", "claude-opus-5:2"]`, `fields` are those of a route in `models.yaml`."""
    body = {"to": [one if isinstance(one, str) else dict(one) for one in to], **fields}
    reply = yield from ask(Call(method="PUT", path=_path("routes", name), json=body))
    return answers.Answer(reply.object())


def remove_route(name: str) -> Operation[None]:
    yield from ask(Call(method="DELETE", path=_path("routes", name)))


def set_price(provider: str, model: str, **price: float) -> Operation[None]:
    """US dollars per million tokens: `input`, `output`, `cached`, `cache_write`; `request` for each call."""
    yield from ask(Call(method="PUT", path=_path("prices", provider, model), json=price))


def remove_price(provider: str, model: str) -> Operation[None]:
    yield from ask(Call(method="DELETE", path=_path("prices", provider, model)))


def list_budgets() -> Operation[list[answers.Answer]]:
    reply = yield from ask(Call(method="GET", path="/v1/model-budgets"))
    return [answers.Answer(entry) for entry in reply.items()]


def show_budget(budget_id: str) -> Operation[answers.Answer]:
    """With what is used of it, and whom it warned lately."""
    reply = yield from ask(Call(method="GET", path=_path("budgets", budget_id)))
    return answers.Answer(reply.object())


def set_budget(budget_id: str, limit: float, **fields: Any) -> Operation[answers.Answer]:
    """`limit` in US dollars a month, unless `unit` (requests, tokens, cost), `period` (minute, day, month, total) or `scope`
    (tenant, agent, user, session, run) say otherwise."""
    reply = yield from ask(Call(method="PUT", path=_path("budgets", budget_id), json={"limit": limit, **fields}))
    return answers.Answer(reply.object())


def remove_budget(budget_id: str) -> Operation[None]:
    yield from ask(Call(method="DELETE", path=_path("budgets", budget_id)))


def list_stops() -> Operation[list[answers.Answer]]:
    reply = yield from ask(Call(method="GET", path="/v1/model-stops"))
    return [answers.Answer(entry) for entry in reply.items()]


def stop(agent: str | None = None, *, reason: str = "") -> Operation[answers.Answer]:
    """Refuse an agent's model calls (None: the whole tenant's) within a second, and cut those under way."""
    reply = yield from ask(Call(method="POST", path="/v1/model-stops", json={"agent": agent, "reason": reason}))
    return answers.Answer(reply.object())


def resume(agent: str | None = None) -> Operation[None]:
    yield from ask(Call(method="DELETE", path=_path("stops", agent or "*")))


def usage(
    *,
    since: float,
    until: float | None = None,
    agent: str | None = None,
    environment: str | None = None,
    run_id: str | None = None,
    by: str | None = None,
) -> Operation[answers.Answer]:
    """What calls used between two times (seconds since the epoch), in all and `by` model, agent, user, session, run, day …"""
    query = {
        "since": repr(since),
        "until": None if until is None else repr(until),
        "agent": agent,
        "environment": environment,
        "run_id": run_id,
        "by": by,
    }
    reply = yield from ask(Call(method="GET", path="/v1/model-usage", query=query))
    return answers.Answer(reply.object())


def _path(kind: str, *names: str) -> str:
    """A name may hold slashes, and is one part of the path where it does not."""
    return "/".join((f"/v1/model-{kind}", *(quote(name, safe="/:") for name in names)))
