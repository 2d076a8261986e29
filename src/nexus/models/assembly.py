"""Everything known about models put together: environment, `models.yaml` and what was set by API become entries of the feed.

What was set by API wins over the file, the file over the environment. One wrong provider is left out and told; the rest works.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from nexus.core import errors
from nexus.models import budgets, catalog, file, provider_auth, providers, sealing
from nexus.ports import model_store as ports
from nexus.wire import feed
from nexus.wire import models as wire

_LOG = logging.getLogger(__name__)


def _no_token(provider: str) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What there is to put together. `key` opens the stored keys of providers, `token` gives those that were fetched."""

    environ: Mapping[str, str] = field(repr=False)
    file: wire.ModelsFile
    settings: Sequence[ports.Setting] = ()
    key: bytes = field(default=b"", repr=False)
    token: Callable[[str], provider_auth.Token | None] = field(default=_no_token, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """`entries` by model name and `routes` by alias, as the feed has them; `sources` says where each provider, alias and price
    (`provider/model`) was set; `priced` names the price lists that are wanted. Entries hold credentials."""

    entries: dict[str, feed.ModelEntry] = field(repr=False)
    routes: dict[str, feed.RouteEntry]
    prices: dict[str, dict[str, wire.Price]]
    providers: dict[str, wire.Provider]
    sources: dict[tuple[str, str], str]
    default_model: str | None
    unknown_model: str
    problems: tuple[errors.NexusError, ...] = ()
    fetched: Mapping[str, tuple[provider_auth.Auth, provider_auth.Read]] = field(default_factory=dict, repr=False)

    @property
    def priced(self) -> frozenset[str]:
        found = {(entry.get("options") or {}).get("prices") or entry["provider"] for entry in self.entries.values()}
        return frozenset(found - {"local"})


def assemble(known: catalog.Catalog, given: Sources) -> Assembled:
    """`known` is what the environment alone leads to."""
    sources: dict[tuple[str, str], str] = {}
    problems = list(known.problems)
    entries = dict(known.entries)
    all_providers: dict[str, wire.Provider] = {}
    sealed: dict[str, bytes] = {}
    for name, provider in given.file.providers.items():
        all_providers[name], sources["provider", name] = provider, file.NAME
    routes = dict(given.file.routes)
    sources |= {("route", name): file.NAME for name in routes}
    prices: dict[str, dict[str, wire.Price]] = {name: dict(of) for name, of in given.file.prices.items()}
    sources |= {("price", f"{provider}/{model}"): file.NAME for provider, of in prices.items() for model in of}
    for setting in given.settings:
        try:
            _take_setting(setting, all_providers, routes, prices)
        except pydantic.ValidationError as error:
            problems.append(errors.Invalid(f"the {setting.kind} {setting.name} cannot be used", cause=str(error)[:300]))
            continue
        sources[setting.kind, setting.name] = "api"
        if setting.sealed is not None:
            sealed[setting.name] = setting.sealed
    fetched: dict[str, tuple[provider_auth.Auth, provider_auth.Read]] = {}
    for name, provider in all_providers.items():
        try:
            entries |= _entries_of(name, provider, _key_of(name, provider, given, sealed), given, fetched)
        except errors.NexusError as problem:
            _LOG.warning("%s: %s (%s)", problem.code, problem.message, problem.cause)
            problems.append(problem)
            entries |= providers.render_unusable(name, provider)
    chosen = given.file.default or known.default_model
    rendered = {name: render_route(route) for name, route in routes.items()}
    if chosen is not None and chosen not in rendered and feed.resolve_model(entries, chosen) is None:
        problems.append(errors.NotFound(f"the default model {chosen!r} is not known here", code="model.not_found"))
        chosen = known.default_model
    return Assembled(
        entries=entries,
        routes=rendered,
        prices=prices,
        providers=all_providers,
        sources=sources,
        default_model=chosen,
        unknown_model=given.file.unknown,
        problems=tuple(problems),
        fetched=fetched,
    )


def _entries_of(
    name: str,
    provider: wire.Provider,
    key: str | None,
    given: Sources,
    fetched: dict[str, tuple[provider_auth.Auth, provider_auth.Read]],
) -> dict[str, feed.ModelEntry]:
    """A provider's entries with its own authentication in them; notes in `fetched` whose token has to be fetched."""
    rendered = providers.render(name, provider, key, given.environ)
    auth = provider_auth.parse(name, provider.kind, provider.auth)
    token = given.token(name)

    def read(reference: str) -> str:
        return _read_reference(name, reference, given.environ)

    if provider_auth.fetches(auth):
        fetched[name] = (auth, read)
    return {
        model: provider_auth.apply(entry, name=name, kind=provider.kind, auth=auth, environ=given.environ, read=read, token=token)
        for model, entry in rendered.items()
    }


def _take_setting(
    setting: ports.Setting,
    all_providers: dict[str, wire.Provider],
    routes: dict[str, wire.Route],
    prices: dict[str, dict[str, wire.Price]],
) -> None:
    if setting.kind == "provider":
        all_providers[setting.name] = wire.Provider.model_validate(setting.value)
    elif setting.kind == "route":
        routes[setting.name] = wire.Route.model_validate(setting.value)
    else:
        provider, _, model = setting.name.partition("/")
        prices.setdefault(provider, {})[model] = wire.Price.model_validate(setting.value)


def _key_of(name: str, provider: wire.Provider, given: Sources, sealed: Mapping[str, bytes]) -> str | None:
    """The provider's key, from where it says it is. Raises `Invalid` (`provider.key_missing`)."""
    if name in sealed and provider.key in (None, "stored"):
        return sealing.unseal(given.key, name, sealed[name])
    if provider.key is None:
        return None
    return _read_reference(name, provider.key, given.environ)


def _read_reference(name: str, reference: str, environ: Mapping[str, str]) -> str:
    """The text behind `env:NAME` or `file:/path`."""
    kind, _, place = reference.partition(":")
    value: str | None = None
    if kind == "env":
        value = environ.get(place)
    elif kind == "file":
        try:
            value = Path(place).read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            value = None
    if not value or not value.strip():
        raise errors.Invalid(
            f"the key of provider {name} is not there",
            code="provider.key_missing",
            cause=f"it should be in {reference}",
            next_step=f"set it there, or store it: nexus models provider set {name} --key -",
        )
    return value.strip()


def render_route(route: wire.Route) -> feed.RouteEntry:
    return feed.RouteEntry(
        targets=[{"model": one.model, "weight": one.weight} for one in route.to],
        choose=route.choose,
        fallback=list(route.fallback),
        last_resort=route.last_resort,
        on=list(route.on),
        rules=[rule.model_dump(exclude_none=True) for rule in route.rules],
        trim_to=route.trim_to,
    )


def declared(
    file_budgets: Mapping[str, wire.BudgetSpec], rows: Sequence[ports.BudgetRow], of_configs: Sequence[budgets.Declared]
) -> list[budgets.Declared]:
    """Every budget that holds; the API's wins over the file's of the same name."""
    found = {
        ("default", name): budgets.Declared(tenant="default", id=name, spec=spec, source=file.NAME)
        for name, spec in file_budgets.items()
    }
    for row in rows:
        try:
            spec = wire.BudgetSpec.model_validate(row.value)
        except pydantic.ValidationError:
            _LOG.warning("the budget %s of tenant %s cannot be read", row.id, row.tenant)
            continue
        found[row.tenant, row.id] = budgets.Declared(tenant=row.tenant, id=row.id, spec=spec, source="api")
    return [*found.values(), *of_configs]


def render_feed(made: Assembled, prices: Mapping[str, feed.PricesEntry]) -> dict[str, Any]:
    """The entries of the feed's part `models`."""
    found: dict[str, Any] = {f"model/{name}": entry for name, entry in made.entries.items()}
    found |= {f"route/{name}": route for name, route in made.routes.items()}
    return found | {f"prices/{provider}": entry for provider, entry in prices.items()}
