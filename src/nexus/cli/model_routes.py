"""`nexus models provider|route|price …`: where model calls may go, and at what price. The host's admins set them."""

import sys
from typing import Annotated, Any

import typer

from nexus.cli import options

Name = Annotated[str, typer.Argument(help="Its name.", show_default=False)]
Models = list[str] | None


def register(group: typer.Typer) -> None:
    """Add the groups to `nexus models`."""
    for name, text, members in (
        ("provider", "Who answers model calls.", (("set", set_provider), ("list", list_providers), ("remove", remove_provider))),
        (
            "route",
            "Aliases: which models a name leads to.",
            (("set", set_route), ("list", list_routes), ("remove", remove_route)),
        ),
        ("price", "What models cost.", (("set", set_price), ("list", list_prices), ("remove", remove_price))),
    ):
        sub = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help=text)
        for command, function in members:
            sub.command(command)(function)
        group.add_typer(sub, name=name)


def set_provider(
    name: Name,
    kind: Annotated[
        str, typer.Option(help="openai, anthropic, azure, bedrock, google, mistral, ollama, vllm or openai-compatible.")
    ] = "openai-compatible",
    base_url: Annotated[str | None, typer.Option(help="Where it answers: https://host.example/v1.")] = None,
    key: Annotated[str | None, typer.Option(help="`-` reads the key from standard input; it is stored encrypted.")] = None,
    key_env: Annotated[str | None, typer.Option(help="Variable of the host's environment that holds the key.")] = None,
    serves: Annotated[Models, typer.Option(help="A name or pattern that leads here: 'gpt-*'. May be given again.")] = None,
    timeout: Annotated[str | None, typer.Option(help="Longest silence in an answer: 60s.")] = None,
    first_byte: Annotated[str | None, typer.Option(help="Longest wait for an answer's first byte: 10s.")] = None,
    retries: Annotated[int, typer.Option(help="Attempts more at this provider before the first byte.")] = 0,
    batch: Annotated[str | None, typer.Option(help="Gather embeddings for so long and send them together: 5ms.")] = None,
) -> None:
    """Add or replace a provider."""
    from nexus.cli import connect, screen

    provider: dict[str, Any] = {"kind": kind, "retries": retries}
    further = {"base_url": base_url, "serves": serves, "timeout": timeout, "first_byte": first_byte}
    provider |= {field: value for field, value in further.items() if value is not None}
    if batch is not None:
        provider["batch"] = {"window": batch}
    if key_env is not None:
        provider["key"] = f"env:{key_env}"
    with connect.open_client() as host:
        host.models.set_provider(name, provider, key=None if key is None else _read_key(key))
    screen.note(f"provider {name} is set; its models are {name}/…" + (f" and {', '.join(serves)}" if serves else ""))


def _read_key(given: str) -> str:
    """The key, which has no business in an argument: other users of the machine could read it there."""
    from nexus.core import errors

    if given != "-":
        raise errors.Invalid(
            "a key is not given as an argument",
            code="provider.key_in_argument",
            cause="arguments can be read by others, and are kept in the shell's history",
            next_step="--key - and the key on standard input, or --key-env NAME",
        )
    if sys.stdin.isatty():
        return str(typer.prompt("key", hide_input=True, err=True))
    return sys.stdin.readline().strip()


def list_providers(as_json: options.Json = False) -> None:
    """List providers that were set; those of the environment's keys are in `nexus models list`."""
    from nexus.cli import connect, screen

    with connect.open_client() as host:
        found = host.models.settings()
    if as_json:
        screen.write_json(found["providers"])
        return
    rows = [
        (one["name"], one["kind"], one.get("base_url") or "its own", ", ".join(one["serves"]) or "", one["source"])
        for one in found["providers"]
    ]
    screen.table(("PROVIDER", "KIND", "ADDRESS", "SERVES", "SET BY"), rows, empty="no providers were set")
    _tell_problems(found["problems"])


def remove_provider(name: Name) -> None:
    """Remove a provider and its key."""
    from nexus.cli import connect, screen

    with connect.open_client() as host:
        host.models.remove_provider(name)
    screen.note(f"provider {name} is removed")


def set_route(
    name: Annotated[str, typer.Argument(help="The alias: fast, smart …", show_default=False)],
    to: Annotated[list[str], typer.Option(help="A model, `name:weight` with a weight. In order of preference.")],
    choose: Annotated[str, typer.Option(help="order, weight or price.")] = "order",
    fallback: Annotated[Models, typer.Option(help="Tried when all of --to failed. May be given again.")] = None,
    last_resort: Annotated[str | None, typer.Option(help="Asked when everything failed: a local small model.")] = None,
    on: Annotated[Models, typer.Option(help="What lets the next be tried: error, timeout, rate, quota.")] = None,
    rule: Annotated[Models, typer.Option(help="below_tokens=400,use=smollm2; the first that fits chooses.")] = None,
    trim_to: Annotated[int | None, typer.Option(help="Leave out the oldest messages beyond so many tokens.")] = None,
    as_json: options.Json = False,
) -> None:
    """Add or replace an alias."""
    from nexus.cli import connect, screen

    fields: dict[str, Any] = {"choose": choose, "fallback": fallback or [], "rules": [parse_rule(one) for one in rule or []]}
    further = {"last_resort": last_resort, "on": on, "trim_to": trim_to}
    fields |= {field: value for field, value in further.items() if value is not None}
    with connect.open_client() as host:
        made = host.models.set_route(name, to, **fields)
    screen.give(made, as_json=as_json, text=f"{name} leads to {', '.join(to)}")
    if made["missing"] and not as_json:
        screen.note(f"not known here: {', '.join(made['missing'])}", style="yellow")


def parse_rule(text: str) -> dict[str, Any]:
    """`below_tokens=400,without_tools=true,use=smollm2` as a rule of an alias."""
    from nexus.core import errors

    rule: dict[str, Any] = {}
    for part in text.split(","):
        name, mark, value = part.strip().partition("=")
        if not mark or not name or not value:
            raise errors.Invalid(
                f"{part[:60]!r} is no part of a rule", code="rule.invalid", next_step="such as below_tokens=400,use=smollm2"
            )
        rule[name] = int(value) if value.isdecimal() else value == "true" if value in ("true", "false") else value
    return rule


def list_routes(as_json: options.Json = False) -> None:
    """List aliases."""
    from nexus.cli import connect, screen

    with connect.open_client() as host:
        found = host.models.settings()
    if as_json:
        screen.write_json(found["routes"])
        return
    rows = []
    for one in found["routes"]:
        weights = one["choose"] == "weight"
        to = ", ".join(f"{target['model']}:{target['weight']}" if weights else target["model"] for target in one["targets"])
        then = ", ".join([*one["fallback"], *([one["last_resort"]] if one["last_resort"] else [])])
        rows.append((one["name"], to, one["choose"], then, one["source"]))
    screen.table(("ALIAS", "LEADS TO", "BY", "THEN", "SET BY"), rows, empty="no aliases; next: nexus models route set")


def remove_route(name: Name) -> None:
    """Remove an alias."""
    from nexus.cli import connect, screen

    with connect.open_client() as host:
        host.models.remove_route(name)
    screen.note(f"alias {name} is removed")


def set_price(
    provider: Annotated[str, typer.Argument(help="The provider.", show_default=False)],
    model: Annotated[str, typer.Argument(help="Its model, or a pattern that ends in *.", show_default=False)],
    input: Annotated[float, typer.Option(help="US dollars per million tokens of prompt.")],
    output: Annotated[float, typer.Option(help="US dollars per million tokens of answer.")] = 0.0,
    cached: Annotated[float | None, typer.Option(help="The same of what the provider had cached.")] = None,
    cache_write: Annotated[float | None, typer.Option(help="The same of what it put into its cache.")] = None,
    request: Annotated[float | None, typer.Option(help="US dollars for each call.")] = None,
) -> None:
    """Set a price in place of the list price."""
    from nexus.cli import connect, screen

    price = {"input": input, "output": output}
    further = {"cached": cached, "cache_write": cache_write, "request": request}
    with connect.open_client() as host:
        host.models.set_price(provider, model, **price, **{kind: value for kind, value in further.items() if value is not None})
    screen.note(f"{model} of {provider}: ${input:g} in, ${output:g} out for a million tokens")


def list_prices(as_json: options.Json = False) -> None:
    """List prices that were set; everything else has its provider's list price."""
    from nexus.cli import connect, screen

    with connect.open_client() as host:
        found = host.models.settings()["prices"]
    if as_json:
        screen.write_json(found)
        return
    kinds = ("input", "output", "cached", "cache_write", "request")
    rows = [
        (one["provider"], one["model"], *("" if one[kind] is None else f"{one[kind]:g}" for kind in kinds), one["source"])
        for one in found
    ]
    heads = ("PROVIDER", "MODEL", "INPUT", "OUTPUT", "CACHED", "CACHE WRITE", "CALL", "SET BY")
    screen.table(heads, rows, empty="no prices were set; list prices hold")


def remove_price(
    provider: Annotated[str, typer.Argument(help="The provider.", show_default=False)],
    model: Annotated[str, typer.Argument(help="Its model.", show_default=False)],
) -> None:
    """Go back to the list price."""
    from nexus.cli import connect, screen

    with connect.open_client() as host:
        host.models.remove_price(provider, model)
    screen.note(f"the list price of {model} holds again")


def _tell_problems(problems: list[dict[str, Any]]) -> None:
    from nexus.cli import screen

    for problem in problems:
        screen.note(f"{problem['message']}" + (f": {problem['cause']}" if problem["cause"] else ""), style="yellow")
