"""`nexus models budget|usage|stop|resume`: what model calls may cost, did cost, and the switch that ends it."""

import time
from typing import Annotated, Any

import typer

from nexus.cli import options

Name = Annotated[str, typer.Argument(help="Its name.", show_default=False)]
AgentOption = Annotated[str | None, typer.Option("--agent", "-a", help="Only this agent's calls.")]
Since = Annotated[str, typer.Option("--since", help="From 1h, 7d, 30d ago, or from a time such as 2026-11-01T00:00.")]


def register(group: typer.Typer) -> None:
    """Add the commands to `nexus models`."""
    sub = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Most that model calls may use.")
    for name, command in (("set", set_budget), ("list", list_budgets), ("show", show_budget), ("remove", remove_budget)):
        sub.command(name)(command)
    group.add_typer(sub, name="budget")
    group.command("usage")(usage)
    group.command("stop")(stop)
    group.command("resume")(resume)
    group.command("stops")(list_stops)


def set_budget(
    name: Name,
    cost: Annotated[float | None, typer.Option(help="US dollars in each period.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens in each period, in and out.")] = None,
    requests: Annotated[int | None, typer.Option(help="Calls in each period.")] = None,
    per: Annotated[str, typer.Option(help="minute, day, month (of UTC) or total.")] = "month",
    scope: Annotated[
        str | None, typer.Option(help="tenant, agent, user, session or run; of the last four each has this much.")
    ] = None,
    agent: AgentOption = None,
    environment: options.Environment = None,
    subject: Annotated[str | None, typer.Option(help="One user, session or run instead of each.")] = None,
    warn: Annotated[list[int] | None, typer.Option(help="Percentages at which somebody is told (50, 80, 100).")] = None,
    webhook: Annotated[str | None, typer.Option(help="URL that is told.")] = None,
    as_json: options.Json = False,
) -> None:
    """Add or replace a budget. Gateways keep it from the next call on."""
    from nexus.cli import connect, screen
    from nexus.core import errors

    given = {unit: value for unit, value in (("cost", cost), ("tokens", tokens), ("requests", requests)) if value is not None}
    if len(given) != 1:
        raise errors.Invalid(
            "a budget limits one thing", code="budget.invalid", next_step="give one of --cost, --tokens and --requests"
        )
    ((unit, limit),) = given.items()
    fields: dict[str, Any] = {"unit": unit, "period": per, "scope": scope or ("agent" if agent else "tenant")}
    further = {"agent": agent, "environment": environment, "subject": subject, "warn": warn, "webhook": webhook}
    with connect.open_client() as host:
        made = host.models.set_budget(
            name, limit, **fields, **{field: value for field, value in further.items() if value is not None}
        )
    screen.give(made, as_json=as_json, text=f"{made['id']}: {_limit(made)} of {_whose(made)}{_so_far(made)}")


def list_budgets(as_json: options.Json = False) -> None:
    """List budgets with what is used of them."""
    from nexus.cli import connect, screen

    with connect.open_client() as host:
        found = host.models.list_budgets()
    if as_json:
        screen.write_json(found)
        return
    rows = [
        (
            one["id"],
            _whose(one),
            _limit(one),
            _used(one),
            screen.moment(one["resets_at"]) if one["resets_at"] else "",
            one["source"],
        )
        for one in found
    ]
    screen.table(("BUDGET", "OF", "LIMIT", "USED", "RESETS", "SET BY"), rows, empty="no budgets; next: nexus models budget set")


def show_budget(name: Name, as_json: options.Json = False) -> None:
    """Show a budget, what is used of it, and whom it warned."""
    from nexus.cli import connect, screen

    with connect.open_client() as host:
        found = host.models.show_budget(name)
    if as_json:
        screen.write_json(found)
        return
    screen.write(f"{found['id']}: {_limit(found)} of {_whose(found)}{_so_far(found)}, set by {found['source']}")
    rows = [
        (
            one["at"],
            f"{one['percent']} %",
            _amount(one["spent"], one["unit"]),
            one["subject"],
            one["webhook"] or "",
            one["error"] or "",
        )
        for one in found["notices"]
    ]
    screen.table(("AT", "PASSED", "SPENT", "SUBJECT", "WEBHOOK", "ERROR"), rows, empty="it has warned nobody yet")


def remove_budget(name: Name) -> None:
    """Remove a budget."""
    from nexus.cli import connect, screen

    with connect.open_client() as host:
        host.models.remove_budget(name)
    screen.note(f"budget {name} is removed")


def usage(
    agent: AgentOption = None,
    environment: options.Environment = None,
    by: Annotated[
        str | None, typer.Option(help="model, provider, agent, environment, user, session, run, principal or day.")
    ] = "model",
    since: Since = "30d",
    until: Annotated[str | None, typer.Option("--until", help="Up to then, written like --since.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Only this run's calls.")] = None,
    as_json: options.Json = False,
) -> None:
    """Show what model calls used and cost, the dearest first."""
    from nexus.cli import connect, screen
    from nexus.cli.agent.logs import parse_since

    now = time.time()
    with connect.open_client() as host:
        found = host.models.usage(
            since=parse_since(since, now),
            until=None if until is None else parse_since(until, now),
            agent=agent,
            environment=environment,
            run_id=run,
            by=by,
        )
    if as_json:
        screen.write_json(found)
        return
    rows = [_usage_row(one) for one in found["rows"]] + [_usage_row({**found["total"], "group": "all"})]
    heads = ((by or "").upper(), "CALLS", "FAILED", "TOKENS IN", "OF THEM CACHED", "TOKENS OUT", "COST")
    screen.table(heads, rows if found["total"]["calls"] else [], empty="no model calls in that time")
    total = found["total"]
    if total["unpriced"]:
        screen.note(f"{total['unpriced']} calls have no known price: nexus models price set", style="yellow")
    if total["estimated"]:
        screen.note(f"of {total['estimated']} calls the tokens are estimated: the provider did not report them")


def _usage_row(one: dict[str, Any]) -> tuple[object, ...]:
    counts = (one["calls"], one["failed"], one["input_tokens"], one["cached_tokens"], one["output_tokens"])
    return (one["group"] or "-", *counts, _amount(one["cost"], "cost"))


def stop(
    agent: AgentOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Every agent of the tenant, and direct callers.")] = False,
    reason: Annotated[str, typer.Option(help="Told to whoever is refused.")] = "",
    as_json: options.Json = False,
) -> None:
    """Stop model calls at once: new ones are refused, those under way are cut."""
    from nexus.cli import connect, screen

    _require_one(agent, everything)
    with connect.open_client() as host:
        made = host.models.stop(agent, reason=reason)
    again = f"nexus models resume {'--agent ' + agent if agent else '--all'}"
    screen.give(made, as_json=as_json, text=f"model calls of {agent or 'this tenant'} are stopped; {again}")


def resume(
    agent: AgentOption = None,
    everything: Annotated[bool, typer.Option("--all", help="What `stop --all` stopped.")] = False,
) -> None:
    """Let model calls go on."""
    from nexus.cli import connect, screen

    _require_one(agent, everything)
    with connect.open_client() as host:
        host.models.resume(agent)
    screen.note(f"model calls of {agent or 'this tenant'} go on")


def _require_one(agent: str | None, everything: bool) -> None:
    from nexus.core import errors

    if (agent is None) is not everything:
        raise errors.Invalid("say whose model calls", code="stop.invalid", next_step="--agent NAME, or --all")


def list_stops(as_json: options.Json = False) -> None:
    """List whose model calls are stopped."""
    from nexus.cli import connect, screen

    with connect.open_client() as host:
        found = host.models.list_stops()
    if as_json:
        screen.write_json(found)
        return
    rows = [("all" if one["agent"] == "*" else one["agent"], screen.ago(one["since"]), one["by"], one["reason"]) for one in found]
    screen.table(("AGENT", "SINCE", "BY", "REASON"), rows, empty="nobody's model calls are stopped")


def _whose(one: dict[str, Any]) -> str:
    words = [one["scope"] if one["scope"] in ("tenant", "agent") else f"each {one['scope']}"]
    if one["subject"]:
        words = [one["scope"], one["subject"]]
    if one["agent"]:
        words += [one["agent"]] if one["scope"] == "agent" else ["of", one["agent"]]
    return " ".join([*words, *(["in", one["environment"]] if one["environment"] else [])])


def _limit(one: dict[str, Any]) -> str:
    period = "in all" if one["period"] == "total" else f"per {one['period']}"
    return f"{_amount(one['limit'], one['unit'])} {period}"


def _so_far(one: dict[str, Any]) -> str:
    return "" if one["used"] is None else f", {_used(one)} used"


def _used(one: dict[str, Any]) -> str:
    return "each its own" if one["used"] is None else _amount(one["used"], one["unit"])


def _amount(value: float, unit: str) -> str:
    if unit == "cost":
        return f"${value:,.2f}" if value >= 1 or not value else f"${value:.6f}"
    return f"{int(value):,} {unit}"
