"""The route table: what the feed says, compiled for look-ups. A table never changes; a delta makes a new one.

A new table is built completely before it is put in place, so no request sees half of a change. What this process itself
observes of an instance (`Instance.active`, `out_until` …) outlives tables: the same instance keeps the same object.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nexus.core import principals
from nexus.gateway import breaker, kept, mint, model_budget, model_prices, model_table, shapes, wishes
from nexus.gateway import entries as entry_rules
from nexus.wire import feed as wire_feed

if TYPE_CHECKING:
    from nexus.gateway import outliers

SERVICE = "service"
_UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
DEFAULT_MAX_BODY = 16 * 1024 * 1024


class FeedBroken(Exception):
    """The feed said something that cannot be applied; the client reconnects and takes a snapshot."""


class Outage:
    """Until when (monotonic seconds) any of a deployment's instances is left out: before that each is looked at."""

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = 0.0


@dataclass(slots=True, kw_only=True, eq=False)
class Instance:
    """A place that serves runs, with what this process saw of it: `active` runs, `out_until` (monotonic seconds) after
    refused connections (`refused` in a row), `failures` in a row, `latency_s` (a moving average). It shares its deployment's
    `outage`; with the balancer `health-based` it has a `watch`.

    `told` (lines for clients), `id_bytes`, `tag_bytes` and `version_json` are ready-made; `shape` is the last plain answer's.
    """

    id: str
    address: str
    version: str
    tag: str
    active: int = 0
    out_until: float = 0.0
    refused: int = 0
    failures: int = 0
    latency_s: float = 0.0
    circuit: breaker.Circuit = field(default_factory=breaker.Circuit, repr=False)
    outage: Outage = field(default_factory=Outage, repr=False)
    watch: "outliers.Watch | None" = field(default=None, repr=False)
    shape: shapes.Shape[tuple[int, bytes]] | None = field(default=None, repr=False)
    told: bytes = field(init=False, repr=False)
    id_bytes: bytes = field(init=False, repr=False)
    tag_bytes: bytes = field(init=False, repr=False)
    version_json: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.told = (
            b"X-Content-Type-Options: nosniff\r\nContent-Security-Policy: sandbox\r\nNexus-Version: %b\r\n"
            % self.version.encode("latin-1", "replace")
        )
        self.id_bytes = self.id.encode("ascii")
        self.tag_bytes = self.tag.encode("ascii")
        self.version_json = json.dumps(self.version).encode()


class Turn:
    """Whose turn it is: `at` grows with every choice, and is set back when a choice was not used."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = 0

    def take(self) -> int:
        self.at += 1
        return self.at - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """`circuit` and `cache` live as long as the revision, `turn` and `outage` as long as the deployment, in every table.

    `versions` are the instances by version, `idle` those without traffic, for runs that name their version. `draining` are those
    of versions that were replaced, for the sessions that began there; `asleep` such versions that must be woken for that. `by_id`
    are all of these instances.
    `pinned` holds the sessions whose version this table has seen noted, `homes` where sessions live while every instance is
    well. `plain` deployments may take the short way (`express`).
    """

    id: str
    tenant: str
    agent: str
    environment: str
    revision: int
    balancer: str
    instances: tuple[Instance, ...]
    tags: Mapping[str, Instance]
    timeout_s: float
    wait_s: float
    max_concurrency: int | None
    max_queue: int
    options: wishes.Options = field(default_factory=wishes.Options)
    versions: Mapping[str, tuple[Instance, ...]] = field(default_factory=dict)
    idle: Mapping[str, tuple[Instance, ...]] = field(default_factory=dict)
    draining: Mapping[str, tuple[Instance, ...]] = field(default_factory=dict)
    asleep: frozenset[str] = frozenset()
    by_id: Mapping[str, Instance] = field(default_factory=dict)
    turn: Turn = field(default_factory=Turn, repr=False)
    outage: Outage = field(default_factory=Outage, repr=False)
    circuit: breaker.Circuit = field(default_factory=breaker.Circuit, repr=False)
    cache: kept.Cache = field(default_factory=kept.Cache, repr=False)
    pinned: set[str] = field(default_factory=set, repr=False)
    homes: dict[str, Instance] = field(default_factory=dict, repr=False)

    @property
    def open_homes(self) -> Mapping[str, Instance]:
        """`homes`, when a session that is found there may go there at once: it has no worker of its own, and neither split nor
        circuit has a say."""
        free = len(self.versions) == 1 and self.options.threshold is None and not self.options.isolated
        return self.homes if free else {}

    @property
    def kept(self) -> tuple[str, ...]:
        """Versions that were replaced and keep the sessions which began on them."""
        return (*self.draining, *self.asleep) if self.draining or self.asleep else ()

    @property
    def plain(self) -> bool:
        return self.options.cache is None and self.options.split is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who presented a credential: an API key's principal, the dispatcher (`service`), or an instance (`token`), of which
    it may be the worker of one session (`session_id`)."""

    principal: principals.Principal
    may_run: bool
    service: bool = False
    token: wire_feed.TokenEntry | None = None
    session_id: str | None = None
    expires_at: float | None = None
    requests_per_minute: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTable:
    """`agents` maps (tenant, agent) to its deployments by environment; `keys` and `tokens` map SHA-256 to a caller,
    `token_hashes` an instance to the SHA-256 of its token."""

    epoch: str = ""
    version: int = -1
    entries: Mapping[str, Any] = field(default_factory=dict, repr=False)
    agents: Mapping[tuple[str, str], Mapping[str, Deployment]] = field(default_factory=dict)
    keys: Mapping[str, Caller] = field(default_factory=dict, repr=False)
    tokens: Mapping[str, Caller] = field(default_factory=dict, repr=False)
    token_hashes: Mapping[str, str] = field(default_factory=dict, repr=False)
    models: Mapping[str, wire_feed.ModelEntry] = field(default_factory=dict, repr=False)
    tenant_rates: Mapping[str, int | None] = field(default_factory=dict)
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    model_routes: Mapping[str, wire_feed.RouteEntry] = field(default_factory=dict, repr=False)
    prices: Mapping[str, model_prices.PriceList] = field(default_factory=dict, repr=False)
    budgets: Mapping[str, tuple[model_budget.Budget, ...]] = field(default_factory=dict, repr=False)
    stops: Mapping[str, wire_feed.StopEntry] = field(default_factory=dict)
    default_model: str | None = None
    refuse_unknown: bool = False
    audit_content: str = "off"
    max_body_bytes: int = DEFAULT_MAX_BODY

    @property
    def loaded(self) -> bool:
        return self.version >= 0


def plan_snapshot(old: RouteTable, snapshot: wire_feed.Snapshot) -> RouteTable:
    """The table of a snapshot, or `FeedBroken` when any entry is not of its shape."""
    try:
        return _compile(RouteTable(), old, snapshot["epoch"], snapshot["version"], dict(snapshot["entries"]), ())
    except _UNREADABLE as error:
        raise FeedBroken(f"a snapshot cannot be read: {error!r}") from error


def plan_delta(old: RouteTable, delta: wire_feed.Delta) -> RouteTable:
    """The table after a delta, or `FeedBroken` when it does not follow on `old`."""
    try:
        if delta["epoch"] != old.epoch or delta["previous"] != old.version:
            raise FeedBroken(f"delta {delta['previous']}->{delta['version']} does not follow {old.version}")
        return _compile(old, old, delta["epoch"], delta["version"], dict(delta["set"]), tuple(delta["delete"]))
    except _UNREADABLE as error:
        raise FeedBroken(f"a delta cannot be read: {error!r}") from error


def _compile(
    start: RouteTable, old: RouteTable, epoch: str, version: int, changed: dict[str, Any], deleted: tuple[str, ...]
) -> RouteTable:
    """`start` with entries set and deleted; instances that `old` knew keep their object."""
    entries = dict(start.entries)
    agents: dict[tuple[str, str], dict[str, Deployment]] = {name: dict(by_env) for name, by_env in start.agents.items()}
    keys, tokens, models = dict(start.keys), dict(start.tokens), dict(start.models)
    tenant_rates = dict(start.tenant_rates)
    model_routes, prices, stops = dict(start.model_routes), dict(start.prices), dict(start.stops)
    simple: dict[str, tuple[dict[str, Any], Callable[[Mapping[str, Any]], Any]]] = {
        "key": (keys, _key), "token": (tokens, _token), "model": (models, _model), "tenant": (tenant_rates, _tenant_rate),
        "route": (model_routes, model_table.parse_route), "prices": (prices, model_table.parse_prices),
        "stop": (stops, model_table.parse_stop),
    }  # fmt: skip
    for path in deleted:
        entries.pop(path, None)
        kind, _, rest = path.partition("/")
        if kind == "deployment":
            _forget(agents, rest)
        elif kind in simple:
            simple[kind][0].pop(rest, None)
    for path, value in changed.items():
        entry_rules.check(path, value)
        entries[path] = value
        kind, _, rest = path.partition("/")
        if kind == "deployment":
            tenant, agent, environment = rest.split("/")
            before = old.agents.get((tenant, agent), {}).get(environment)
            agents.setdefault((tenant, agent), {})[environment] = _deployment(tenant, agent, environment, value, before)
        elif kind in simple:
            compiled, compile_one = simple[kind]
            compiled[rest] = compile_one(value)
    settings = entries.get("settings") or {}
    return RouteTable(
        epoch=str(epoch),
        version=int(version),
        entries=entries,
        agents=agents,
        keys=keys,
        tokens=tokens,
        token_hashes={caller.token["instance_id"]: hashed for hashed, caller in tokens.items() if caller.token is not None},
        models=models,
        tenant_rates=tenant_rates,
        model_routes=model_routes,
        prices=prices,
        budgets=model_table.group_budgets(entries),
        stops=stops,
        hosts=frozenset(str(name).lower() for name in settings.get("hosts", ())),
        origins=frozenset(str(name).lower() for name in settings.get("origins", ())),
        default_model=settings.get("default_model"),
        refuse_unknown=settings.get("unknown_model") == "refuse",
        audit_content=str(settings.get("audit_content", "off")),
        max_body_bytes=int(settings.get("max_body_bytes") or DEFAULT_MAX_BODY),
    )


def _forget(agents: dict[tuple[str, str], dict[str, Deployment]], path: str) -> None:
    tenant, agent, environment = path.split("/")
    by_environment = agents.get((tenant, agent), {})
    by_environment.pop(environment, None)
    if not by_environment:
        agents.pop((tenant, agent), None)


def _deployment(tenant: str, agent: str, environment: str, value: Mapping[str, Any], before: Deployment | None) -> Deployment:
    outage = before.outage if before else Outage()
    known = before.by_id if before else {}
    instances = _instances(value["instances"], known, outage)
    idle = _instances(value.get("idle") or (), known, outage)
    draining = _instances(value.get("draining") or (), known, outage)
    limit = value["max_concurrency"]
    same = before if before is not None and (before.id, before.revision) == (value["id"], int(value["revision"])) else None
    return Deployment(
        id=value["id"],
        tenant=tenant,
        agent=agent,
        environment=environment,
        revision=int(value["revision"]),
        balancer=value["balancer"],
        instances=tuple(instances),
        tags={instance.tag: instance for instance in (*draining, *instances)},
        timeout_s=float(value["timeout_s"]),
        wait_s=float(value["wait_s"]),
        max_concurrency=None if limit is None else int(limit),
        max_queue=int(value["max_queue"]),
        options=wishes.parse_options(value.get("options") or {}, where=f"{tenant}/{agent}/{environment}"),
        versions=_by_version(instances),
        idle=_by_version(idle),
        draining=_by_version(draining),
        by_id={instance.id: instance for instance in (*instances, *idle, *draining)},
        asleep=frozenset(value.get("asleep") or ()),
        turn=before.turn if before else Turn(),
        outage=outage,
        circuit=same.circuit if same else breaker.Circuit(),
        cache=same.cache if same else kept.Cache(),
    )


def _instances(entries: Sequence[Mapping[str, Any]], known: Mapping[str, Instance], outage: Outage) -> list[Instance]:
    """What the entries name; an instance that is known and the same keeps its object."""
    found = []
    for entry in entries:
        instance = known.get(entry["id"])
        if instance is None or instance.address != entry["address"] or instance.version != entry["version"]:
            parse_address(entry["address"])
            instance = Instance(
                id=entry["id"], address=entry["address"], version=entry["version"], tag=mint.tag_of(entry["id"]), outage=outage
            )
        found.append(instance)
    return found


def _by_version(instances: Iterable[Instance]) -> dict[str, tuple[Instance, ...]]:
    found: dict[str, tuple[Instance, ...]] = {}
    for instance in instances:
        found[instance.version] = (*found.get(instance.version, ()), instance)
    return found


def _key(value: Mapping[str, Any]) -> Caller:
    names = frozenset(value["roles"])
    agents = value["agents"]
    principal = principals.Principal(
        id=value["id"],
        tenant=value["tenant"],
        roles=frozenset(principals.Role(name) for name in names if name in principals.Role._value2member_map_),
        environment=value["environment"],
        agents=None if agents is None else frozenset(agents),
    )
    service = SERVICE in names
    return Caller(
        principal=principal,
        may_run=service or principal.may(principals.Action.RUN),
        service=service,
        expires_at=None if value["expires_at"] is None else float(value["expires_at"]),
        requests_per_minute=_rate(value["requests_per_minute"]),
    )


def _rate(value: object) -> int | None:
    """Requests a minute; None: as many as come. Zero and less is not a rate."""
    if value is None:
        return None
    rate = int(str(value))
    if rate < 1:
        raise ValueError(f"{rate} requests a minute is not a limit")
    return rate


def _tenant_rate(value: Mapping[str, Any]) -> int | None:
    return _rate(value["requests_per_minute"])


def _token(value: Mapping[str, Any]) -> Caller:
    entry = wire_feed.TokenEntry(
        instance_id=value["instance_id"], tenant=value["tenant"], agent=value["agent"], environment=value["environment"]
    )
    principal = principals.Principal(id=entry["instance_id"], tenant=entry["tenant"], roles=frozenset())
    return Caller(principal=principal, may_run=False, token=entry)


def _model(value: Mapping[str, Any]) -> wire_feed.ModelEntry:
    entry = wire_feed.ModelEntry(
        provider=str(value["provider"]),
        base_url=str(value["base_url"]),
        headers={str(name): str(text) for name, text in value["headers"].items()},
        upstream_model=str(value["upstream_model"]),
        dialects=[str(name) for name in value["dialects"]],
    )
    if value.get("options"):
        entry["options"] = dict(value["options"])
    if any(letter in text for name, text in entry["headers"].items() for letter in "\r\n\0" for text in (name, text)):
        raise ValueError("a model's header holds a line break")
    return entry


def parse_address(address: str) -> tuple[str, str, int]:
    """`("unix", path, 0)` or `("tcp", host, port)`; ValueError otherwise."""
    kind, _, rest = address.partition(":")
    if kind == "unix" and rest.startswith("/"):
        return kind, rest, 0
    host, _, port = rest.rpartition(":")
    if kind in ("tcp", "tls") and host and port.isdigit() and 0 < int(port) < 65536:
        return kind, host.strip("[]"), int(port)
    raise ValueError(f"{address!r} is neither unix:/path nor tcp:host:port")
