"""The models room's verbs: providers, aliases, prices, budgets, stops and usage; and what of it gateways are told.

`run` keeps the feed true: it looks again when something was set, when `models.yaml` changed, and once a day for prices.
Providers, aliases and prices are the host's; budgets, stops and usage a tenant's.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from nexus.core import errors, names, principals
from nexus.kit import clock as clocks
from nexus.models import (
    assembly,
    budgets,
    catalog,
    file,
    notices,
    prices,
    provider_auth,
    provider_tokens,
    providers,
    sealing,
)
from nexus.ports import model_store as ports
from nexus.wire import feed
from nexus.wire import models as wire

_LOG = logging.getLogger(__name__)
_LOOK_S = 1.0
_PRICES_S = 86400.0
BUDGET_ID = re.compile(wire.BUDGET_ID)
_MODEL_NAME = re.compile(wire.NAME)
_WHOLE_TENANT = "*"

Publish = Callable[[Mapping[str, Any], str | None, str], None]
"""Takes the feed's entries, the default model, and what becomes of unknown names."""


class ModelService:
    def __init__(
        self,
        *,
        store: ports.ModelStore,
        notices: notices.Notices,
        environ: Mapping[str, str],
        known: catalog.Catalog,
        file_path: Path,
        key: bytes,
        publish: Publish,
        clock: clocks.Clock,
        price_cache: Path,
        load_prices: Callable[[frozenset[str]], Awaitable[Mapping[str, feed.PricesEntry]]] = prices.load,
    ) -> None:
        self.store = store
        self.clock = clock
        self.notices = notices
        self._environ = environ
        self._known = known
        self._path = file_path
        self._key = key
        self._publish = publish
        self._load_prices = load_prices
        self._price_cache = price_cache
        self._file = wire.ModelsFile()
        self._file_stamp: tuple[int, int] | None = None
        self._file_problem: errors.NexusError | None = None
        self._listed: Mapping[str, feed.PricesEntry] = prices.read_cache(price_cache)
        self._priced: frozenset[str] = frozenset()
        self._priced_at = float("-inf")
        self._openings: dict[tuple[str, str, str, int], int] = {}
        self._of_configs: tuple[budgets.Declared, ...] = ()
        self._woken = asyncio.Event()
        self.tokens = provider_tokens.ProviderTokens(changed=self._woken.set, environ=environ, clock=clock)
        self._refreshing = asyncio.Lock()
        self.made = assembly.assemble(known, assembly.Sources(environ=environ, file=self._file))
        self.declared: list[budgets.Declared] = []
        notices.url_of = self._url_of

    # what gateways are told

    async def start(self) -> None:
        """Tell gateways what is known, before anything is served."""
        self._read_file()
        await self.refresh()

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._woken.wait()
            except TimeoutError:
                if not self._read_file() and not self._prices_are_old():
                    continue
            self._woken.clear()
            if self._prices_are_old():
                await self._look_prices_up()
            await self.refresh()

    def _read_file(self) -> bool:
        """Whether the file says something else than before. A wrong one is told and changes nothing."""
        stamp = file.stamp(self._path)
        if stamp == self._file_stamp:
            return False
        self._file_stamp = stamp
        try:
            self._file, self._file_problem = file.read(self._path), None
        except errors.Invalid as problem:
            _LOG.error("%s: %s", problem.message, problem.cause)
            self._file_problem = problem
            return False
        _LOG.info("read %s", self._path)
        return True

    def _prices_are_old(self) -> bool:
        return self.made.priced != self._priced or self.clock.monotonic() - self._priced_at > _PRICES_S

    async def _look_prices_up(self) -> None:
        wanted = self.made.priced
        found = await self._load_prices(wanted)
        self._priced, self._priced_at = wanted, self.clock.monotonic()
        if found:
            self._listed = found
            await asyncio.to_thread(prices.write_cache, self._price_cache, found)

    async def declare(self, found: Sequence[budgets.Declared]) -> None:
        """What deployments' `config.yaml` declare, all of it; called with every picture of the reconciler, before its routes
        are told: nothing new is served before its budget holds."""
        if tuple(found) == self._of_configs:
            return
        self._of_configs = tuple(found)
        try:
            await self.refresh()
        except errors.Unavailable:
            self._woken.set()

    async def refresh(self) -> None:
        """Put everything together and tell gateways, with the prices that are known. Raises `Unavailable` when the store
        cannot be asked."""
        async with self._refreshing:
            given = assembly.Sources(
                environ=self._environ,
                file=self._file,
                settings=await self.store.settings(),
                key=self._key,
                token=self.tokens.find,
            )
            made = assembly.assemble(self._known, given)
            self.tokens.want(made.fetched)
            rows, stops = await self.store.budgets(), await self.store.stops()
            self.made = made
            if made.priced != self._priced:
                self._woken.set()
            self.declared = assembly.declared(self._file.budgets, rows, self._of_configs)
            entries = assembly.render_feed(made, prices.override(self._listed, _by_list(made)))
            for one in self.declared:
                entries[f"budget/{one.tenant}/{one.id}"] = budgets.render(one, await self._opening(one))
            for stop in stops:
                entries[f"stop/{stop.tenant}/{stop.agent}"] = feed.StopEntry(reason=stop.reason, since=stop.since)
            self._publish(entries, made.default_model, made.unknown_model)

    async def _opening(self, one: budgets.Declared) -> dict[str, int] | None:
        """What was used in this window before gateways knew the budget; asked once for each window."""
        if not budgets.needs_opening(one.spec):
            return None
        window, begins, _ = budgets.window_of(one.spec.period, self.clock.time())
        key = (one.tenant, one.id, one.spec.unit, window)
        if key not in self._openings:
            agents = None if one.spec.agent is None else frozenset({one.spec.agent})
            which = ports.UsageFilter(tenant=one.tenant, since=begins, agents=agents, environment=one.spec.environment)
            if len(self._openings) > 10_000:
                self._openings.clear()
            self._openings[key] = await self.store.spent(which, one.spec.unit)
        return {"window": window, "amount": self._openings[key]}

    def _url_of(self, tenant: str, budget_id: str) -> str | None:
        return next((one.spec.webhook for one in self.declared if (one.tenant, one.id) == (tenant, budget_id)), None)

    @property
    def problems(self) -> tuple[errors.NexusError, ...]:
        return (*self.made.problems, *([self._file_problem] if self._file_problem is not None else []))

    @property
    def default_model(self) -> str | None:
        return self.made.default_model

    # providers, aliases, prices: the host's

    async def put_provider(self, caller: principals.Principal, name: str, provider: wire.Provider, key: str | None) -> None:
        """Raises `Invalid` when it could not be used."""
        caller.require(principals.Action.MANAGE_HOST)
        check_name(name, BUDGET_ID, "provider")
        sealed = None
        if key is not None:
            sealed = sealing.seal(self._key, name, providers.check_key(name, key))
        provider_auth.parse(name, provider.kind, provider.auth, by_api=True)
        providers.render(name, provider, key, self._environ)
        await self._put("provider", name, provider, caller, sealed)

    async def put_route(self, caller: principals.Principal, name: str, route: wire.Route) -> list[str]:
        """Gives the targets that are not known here (yet)."""
        caller.require(principals.Action.MANAGE_HOST)
        check_name(name, _MODEL_NAME, "alias")
        ruled = (rule.use for rule in route.rules if not rule.use.startswith("tag:"))
        told = [*(one.model for one in route.to), *route.fallback, *ruled]
        told += [route.last_resort] if route.last_resort else []
        missing = [model for model in dict.fromkeys(told) if feed.resolve_model(self.made.entries, model) is None]
        if len(missing) == len(set(told)):
            raise errors.Invalid(
                f"the alias {name} would lead nowhere",
                code="route.nowhere",
                cause="not known here: " + ", ".join(missing),
                next_step="name models of `nexus models list`; an alias cannot lead to another alias",
            )
        await self._put("route", name, route, caller)
        return missing

    async def put_price(self, caller: principals.Principal, provider: str, model: str, price: wire.Price) -> None:
        caller.require(principals.Action.MANAGE_HOST)
        check_name(provider, BUDGET_ID, "provider")
        check_name(model.removesuffix("*") or "x", _MODEL_NAME, "model")
        await self._put("price", f"{provider}/{model}", price, caller)

    async def drop(self, caller: principals.Principal, kind: ports.SettingKind, name: str) -> None:
        """Raises `NotFound` (`<kind>.not_found`), `Conflict` (`models.from_file`) for what the file says."""
        caller.require(principals.Action.MANAGE_HOST)
        if await self.store.drop_setting(kind, name):
            await self.refresh()
            return
        word = {"provider": "provider", "route": "alias", "price": "price of"}[kind]
        if (kind, name) in self.made.sources:
            raise errors.Conflict(
                f"the {word} {name} is set in {self._path.name}", code="models.from_file", next_step=f"delete it in {self._path}"
            )
        raise errors.NotFound(f"there is no {word} {name[:128]!r}", code=f"{kind}.not_found", next_step="nexus models list")

    async def _put(
        self,
        kind: ports.SettingKind,
        name: str,
        value: pydantic.BaseModel,
        caller: principals.Principal,
        sealed: bytes | None = None,
    ) -> None:
        shown = value.model_dump(mode="json", exclude_unset=True)
        setting = ports.Setting(
            kind=kind, name=name, value=shown, sealed=sealed, updated_at=self.clock.time(), updated_by=caller.id
        )
        await self.store.put_setting(setting)
        await self.refresh()

    # stops

    async def stop(self, caller: principals.Principal, agent: str | None, reason: str) -> ports.StopRow:
        """No model call of this agent (None: of the tenant) from now on; those under way are cut."""
        caller.require(principals.Action.DEPLOY, agent=agent)
        if agent is None:
            require_whole(caller)
        else:
            names.parse_label(agent)
        row = ports.StopRow(
            tenant=caller.tenant, agent=agent or _WHOLE_TENANT, reason=reason[:500], since=self.clock.time(), by=caller.id
        )
        await self.store.put_stop(row)
        await self.refresh()
        _LOG.warning("model calls of %s/%s are stopped by %s", row.tenant, row.agent, row.by)
        return row

    async def resume(self, caller: principals.Principal, agent: str | None) -> None:
        caller.require(principals.Action.DEPLOY, agent=agent)
        if agent is None:
            require_whole(caller)
        if not await self.store.drop_stop(caller.tenant, agent or _WHOLE_TENANT):
            raise errors.NotFound(
                f"model calls of {'agent ' + agent if agent else 'this tenant'} are not stopped", code="stop.not_found"
            )
        await self.refresh()

    async def stops(self, caller: principals.Principal) -> Sequence[ports.StopRow]:
        caller.require(principals.Action.READ)
        found = await self.store.stops(caller.tenant)
        return [one for one in found if caller.agents is None or one.agent in caller.agents or one.agent == _WHOLE_TENANT]


def _by_list(made: assembly.Assembled) -> dict[str, dict[str, wire.Price]]:
    """A host's own prices under the names of the lists that its providers use."""
    found: dict[str, dict[str, wire.Price]] = {}
    for provider, by_model in made.prices.items():
        entry = made.entries.get(f"{provider}/*")
        listed = (entry.get("options") or {}).get("prices") if entry is not None else None
        found.setdefault(listed or provider, {}).update(by_model)
    return found


def check_name(name: str, pattern: re.Pattern[str], what: str) -> None:
    if not pattern.fullmatch(name):
        raise errors.Invalid(
            f"{name[:64]!r} is no name of a {what}",
            code="name.invalid",
            cause=f"it must match {pattern.pattern}",
            next_step="choose letters, digits, '.', '-' and '_'",
        )


def require_whole(caller: principals.Principal) -> None:
    if caller.agents is not None or caller.environment is not None:
        raise errors.Forbidden(
            f"key {caller.id} is for some agents only",
            code="auth.forbidden",
            next_step="name one of them with --agent, or use a key for the whole tenant",
        )
