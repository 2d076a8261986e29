"""What a host is told about models becomes entries of the feed; what is wrong is named and leaves the rest alone."""

from pathlib import Path
from typing import Any

import pydantic
import pytest

from nexus.core import errors
from nexus.gateway import model_prices, model_table, usage
from nexus.kit import home as homes
from nexus.models import assembly, budgets, catalog, file, prices, providers, sealing
from nexus.ports import model_store as ports
from nexus.wire import feed, project_budget
from nexus.wire import models as wire

KEY = bytes(32)
KNOWN = catalog.load_entries({"OPENAI_API_KEY": "sk-env"}, homes.Home(Path("/srv/nexus")))


def assemble(text: str = "", *settings: ports.Setting, **environ: str) -> assembly.Assembled:
    sources = assembly.Sources(environ=environ, file=file.parse(text, Path("models.yaml")), settings=settings, key=KEY)
    return assembly.assemble(KNOWN, sources)


def setting(kind: Any, name: str, sealed: bytes | None = None, **value: Any) -> ports.Setting:
    return ports.Setting(kind=kind, name=name, value=value, sealed=sealed)


FILE = """
default: fast
unknown: refuse
providers:
  mine:
    base_url: https://llm.example/v1/
    key: env:MINE
    serves: [mine-*]
    first_byte: 5s
    models:
      big: {context: 1000000, price: {input: 2, output: 8, cached: 0.5}}
  local: {kind: ollama, serves: ["llama3:8b"]}
routes:
  fast: {to: [mine/big, "gpt-5-mini:2"], choose: weight, last_resort: smollm2, rules: [{use: smollm2, below_tokens: 20}]}
prices:
  openai: {gpt-5*: {input: 1, output: 2}}
budgets:
  all: {limit: 100, warn: [90]}
"""


def test_a_file_becomes_entries_that_a_gateway_can_read() -> None:
    made = assemble(FILE, MINE="sk-mine")
    assert made.problems == ()
    assert made.entries["mine-*"]["headers"] == {"authorization": "Bearer sk-mine"}
    assert made.entries["mine/big"]["base_url"] == "https://llm.example/v1"
    assert made.entries["big"]["options"] == {
        "kind": "openai-compatible", "first_byte_s": 5.0, "context": 1000000,
        "price": {"input": 2.0, "output": 8.0, "cached": 0.5},
    }  # fmt: skip
    assert made.entries["llama3:8b"]["options"]["price"] == {}
    assert feed.resolve_model(made.entries, "mine-x") is not None
    assert (made.default_model, made.unknown_model) == ("fast", "refuse")
    assert model_table.parse_route(made.routes["fast"])["targets"] == [
        {"model": "mine/big", "weight": 1}, {"model": "gpt-5-mini", "weight": 2}
    ]  # fmt: skip
    assert made.sources["provider", "mine"] == "models.yaml"


def test_what_is_set_by_api_wins_and_one_that_is_wrong_is_left_out_alone() -> None:
    sealed = sealing.seal(KEY, "mine", "sk-stored")
    api = setting("provider", "mine", sealed, base_url="https://other.example/v1")
    made = assemble(FILE, api, setting("provider", "odd", base_url="ftp://x"), setting("route", "fast", to=["smollm2"]))
    assert made.entries["mine/*"]["base_url"] == "https://other.example/v1"
    assert made.entries["mine/*"]["headers"] == {"authorization": "Bearer sk-stored"}
    assert [one["model"] for one in made.routes["fast"]["targets"]] == ["smollm2"]
    assert [problem.code for problem in made.problems] == ["provider.invalid"]
    assert "*" in made.entries, "what the environment leads to stays"


def test_a_key_that_is_not_there_is_named_and_never_shown() -> None:
    made = assemble(FILE)
    assert [problem.code for problem in made.problems] == ["provider.key_missing"]
    assert "env:MINE" in str(made.problems[0].cause)
    assert not made.entries["mine/*"]["headers"], "its models say so when they are asked for"
    with pytest.raises(errors.Invalid) as caught:
        providers.check_key("mine", "sk secret\n")
    assert "secret" not in f"{caught.value.message}{caught.value.cause}"


def test_a_sealed_key_opens_for_its_own_provider_only() -> None:
    sealed = sealing.seal(KEY, "mine", "sk-stored")
    assert sealing.unseal(KEY, "mine", sealed) == "sk-stored"
    for key, name in ((KEY, "other"), (b"x" * 32, "mine")):
        with pytest.raises(errors.Internal):
            sealing.unseal(key, name, sealed)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("providers: [", "models.yaml"),
        ("providers: {x: {kind: nonsense}}", "providers.x.kind"),
        ("providers: {x: {base_url: 'http://x', headers: {'a b': c}}}", "providers.x.headers"),
        ("routes: {fast: {to: []}}", "routes.fast.to"),
        ("routes: {fast: {to: [a], choose: best}}", "routes.fast.choose"),
        ("budgets: {b: {limit: 1.5, unit: tokens}}", "whole number"),
        ("budgets: {b: {limit: 1, subject: ann}}", "no subject"),
        ("colour: red", "colour"),
        ("- a", "models.yaml"),
        ("a: &a [*a, *a]", "models.yaml"),
    ],
)
def test_mistakes_in_the_file_are_named(text: str, told: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        file.parse(text, Path("models.yaml"))
    assert caught.value.code == "models.invalid"
    assert told in f"{caught.value.message} {caught.value.cause}"


def test_own_prices_stand_before_the_lists_and_the_longest_pattern_first() -> None:
    listed: dict[str, feed.PricesEntry] = {
        "openai": {"models": [{"match": {"equals": "gpt-5"}, "context": 400_000, "price": {"input": 9}}]}
    }
    own = {"openai": {"gpt-*": wire.Price(input=1), "gpt-5-mini": wire.Price(input=2)}}
    book = model_prices.parse(prices.override(listed, own)["openai"])
    found = {name: book.find(name) for name in ("gpt-5-mini", "gpt-5", "other")}
    assert {name: line.rate.input for name, line in found.items() if line is not None and line.rate is not None} == {
        "gpt-5-mini": 2.0, "gpt-5": 1.0
    }  # fmt: skip
    assert found["other"] is None


async def test_list_prices_come_with_their_thresholds() -> None:
    listed = await prices.load({"anthropic", "openai", "google", "nobody"})
    assert set(listed) == {"anthropic", "openai", "google"}
    books = {provider: model_prices.parse(entry) for provider, entry in listed.items()}
    mini = books["openai"].find("gpt-4.1-mini")
    assert mini is not None
    assert mini.rate is not None
    assert mini.rate.cost_nano(usage.Tokens(1_000_000, 0)) == round(mini.rate.input * 1e9)
    assert mini.rate.cached < mini.rate.input
    tiered = books["google"].find("gemini-2.5-pro")
    assert tiered is not None
    assert tiered.rate is not None
    assert tiered.rate.cost_nano(usage.Tokens(300_000, 0)) > 300_000 * tiered.rate.input * 1000


def test_costs_are_rounded_up_and_count_each_kind_of_token() -> None:
    rate = model_prices.parse_rate({"input": 3, "output": 15, "cached": 0.3, "cache_write": 3.75, "request": 0.01})
    tokens = usage.Tokens(1000, 100, cached=600, cache_written=200)
    assert rate.cost_nano(tokens) == 200 * 3000 + 600 * 300 + 200 * 3750 + 100 * 15_000 + 10_000_000
    assert model_prices.parse_rate({"input": 0.0001}).cost_nano(usage.Tokens(1, 0)) == 1
    assert model_prices.FREE.cost_nano(tokens) == 0


@pytest.mark.parametrize("price", [{"input": -1}, {"input": "x"}, {"input": 1e12}])
def test_what_is_no_price_is_refused(price: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        model_prices.parse_rate(price)


@pytest.mark.parametrize(
    ("period", "now", "window"),
    [
        ("minute", 119.0, (1, 60.0, 120.0)),
        ("day", 86400.0, (1, 86400.0, 172800.0)),
        ("month", 1798761599.0, (2026 * 12 + 11, 1796083200.0, 1798761600.0)),
        ("total", 5.0, (0, 0.0, None)),
    ],
)
def test_windows_are_those_of_utc_and_gateways_agree(period: str, now: float, window: Any) -> None:
    from nexus.gateway import model_budget

    assert budgets.window_of(period, now) == window
    assert model_budget.window_of(period, now)[0] == window[0]
    if window[2] is not None:
        assert model_budget.window_of(period, now)[1] == window[2]


def test_config_yaml_declares_budgets_in_its_own_words() -> None:
    given = project_budget.Budget.model_validate(
        {"max_tokens_per_minute": 10000, "cost_per_month": 20, "run": {"cost": 0.5}, "user": {"requests_per_day": 100}}
    )
    found = {one.id: one.spec for one in budgets.of_config("acme", "hello", "production", given.plan())}
    assert {name: (spec.scope, spec.unit, spec.period, spec.limit) for name, spec in found.items()} == {
        "config.hello.production.agent.tokens.minute": ("agent", "tokens", "minute", 10000.0),
        "config.hello.production.agent.cost.month": ("agent", "cost", "month", 20.0),
        "config.hello.production.run.cost.total": ("run", "cost", "total", 0.5),
        "config.hello.production.user.requests.day": ("user", "requests", "day", 100.0),
    }
    entry = budgets.render(
        budgets.Declared(tenant="acme", id="x", spec=found["config.hello.production.run.cost.total"], source="")
    )
    assert (entry["limit"], entry["agent"], entry["environment"]) == (500_000_000, "hello", "production")
    with pytest.raises(pydantic.ValidationError):
        project_budget.Budget.model_validate({"cost_per_day": -1})
