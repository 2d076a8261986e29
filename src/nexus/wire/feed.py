"""The route feed: what a gateway must know, as keyed entries with a version. Newline-delimited JSON on a unix socket.

Control sends `{"snapshot": Snapshot}` on connect, then `{"delta": Delta}` and every two seconds `{"ping": version}`.
A gateway whose version is not the delta's `previous` (or whose epoch differs) closes and connects again for a snapshot.
The gateway sends `{"hello": {"gateway": 0}}` first, then `{"records": [Record…], "batch": n}`, answered by `{"ack": n}`
once they are stored; unacknowledged batches are sent again after a reconnect (records carry ids, so twice is once).
`{"call": {"deployment": id, "version": version}}` says that a session waits for a version that is `asleep`, again and again
while it does.

Keys of entries, and the type of their value:

    deployment/<tenant>/<agent>/<environment>   DeploymentEntry
    key/<sha256 of an API key>                  KeyEntry
    token/<sha256 of an instance token>         TokenEntry
    model/<name>                                ModelEntry
    route/<alias>                               RouteEntry
    prices/<provider>                           PricesEntry
    budget/<tenant>/<id>                        BudgetEntry
    stop/<tenant>/<agent or *>                  StopEntry
    tenant/<tenant>                             TenantEntry
    settings                                    SettingsEntry

A model's name is resolved in this order: `default` and an absent name become `settings.default_model`; then `route/<name>`, whose
targets are models' names; then `model/<name>`;
then the longest `model/<prefix>*` that fits (`model/gpt-*`, `model/openai/*`, at last `model/*`); then `settings.default_model`;
then `model.not_found`. In an entry under a pattern `upstream_model` may hold one `*`: what the pattern's `*` stood for.
A name ending in `*` is never looked up literally, and `/v1/models` lists patterns' entries not at all.
"""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict


class InstanceEntry(TypedDict):
    """`address` is `unix:/path` or `tcp:host:port`. Only instances that may take new runs are listed."""

    id: str
    address: str
    version: str


class DeploymentEntry(TypedDict):
    """`instances` may be empty while the deployment starts or heals: callers then wait up to `wait_s` for one.

    `options` the gateway knows (others are ignored): `requests_per_minute`; `circuit_breaker` (bool), `failure_threshold`;
    `cache_responses` (bool), `cache_ttl` (seconds or `300s`), `cache_size` (bytes or `100MB`), `cache_headers` (names that
    are part of the key); `compression` (`auto`, `gzip` or `none`); `split` (`[{"version", "weight"}]`), `split_by` (`session` or
    `user`), `split_name`; `models` (for `gateway.model_policy`);
    `isolation` (`session`: the supervisor is asked for each session's own address).

    `idle` are ready instances without any traffic (a colour that is prepared or stands by): for runs that name their version.
    `draining` are ready instances of versions that were replaced: for the sessions that began there. `asleep` are such versions
    without a ready instance: one is started for a session that a gateway reports (`call`).
    """

    id: str
    revision: int
    balancer: Literal["round-robin", "least-connections", "sticky", "health-based"]
    instances: list[InstanceEntry]
    timeout_s: float
    wait_s: float
    max_concurrency: int | None
    max_queue: int
    options: NotRequired[dict[str, Any]]
    idle: NotRequired[list[InstanceEntry]]
    draining: NotRequired[list[InstanceEntry]]
    asleep: NotRequired[list[str]]


class KeyEntry(TypedDict):
    """`environment`/`agents` None: any. `expires_at` None: never."""

    id: str
    tenant: str
    roles: list[str]
    environment: str | None
    agents: list[str] | None
    expires_at: float | None
    requests_per_minute: int | None


class TokenEntry(TypedDict):
    """Whose instance a door token belongs to."""

    instance_id: str
    tenant: str
    agent: str
    environment: str


class TenantEntry(TypedDict):
    """What all keys of a tenant share. None: no limit; a tenant without an entry has none."""

    requests_per_minute: int | None


class ModelEntry(TypedDict):
    """Where a model name leads. `base_url` is `http://`, `https://` or `unix:/path` and includes the provider's prefix
    (`https://api.openai.com/v1`). `headers` are added upstream (the provider's credential); `upstream_model` replaces the
    name in the body. `dialects` lists what the provider speaks: `openai`, `anthropic`. Both dialects are reached by
    `base_url` + the path after `/v1` (`/chat/completions`, `/messages`); behind `unix:/path` the prefix is `/v1`.

    `options` the gateway knows (others are ignored): `prices` (whose price list, absent: `provider`), `price` (as in
    `PricesEntry`), `context` (most input tokens), `tags`, `timeout_s`, `first_byte_s`, `retries` (attempts more at one place),
    `batch` (`window_s`, `most`: embeddings of a tenant that come together go together)."""

    provider: str
    base_url: str
    headers: dict[str, str]
    upstream_model: str
    dialects: list[str]
    options: NotRequired[dict[str, Any]]


class RouteEntry(TypedDict):
    """An alias. `targets` in order of preference, with weights where `choose` is `weight` (`order` takes the first, `price` the
    cheapest by list price); those that cannot take the call's length or are out of order are skipped. The rest of `targets`,
    then `fallback`, then `last_resort` are tried when one fails in a way that `on` names: `error`, `timeout`, `rate` (429),
    `quota` (a budget of money does not cover it).

    `rules` (the first that fits): `{"below_tokens": 400, "use": name or "tag:small"}`, also `above_tokens`, `without_tools`,
    `agent`, `environment`.
    `trim_to`: oldest messages are left out until the prompt is estimated at so many tokens."""

    targets: list[dict[str, Any]]
    choose: Literal["order", "weight", "price"]
    fallback: list[str]
    last_resort: NotRequired[str | None]
    on: list[str]
    rules: NotRequired[list[dict[str, Any]]]
    trim_to: NotRequired[int | None]


class PricesEntry(TypedDict):
    """A provider's list prices, tried in order. Each of `models` has `match` (`{"equals"|"starts_with"|"ends_with"|"contains"|
    "regex": text}`, or `{"or"|"and": [match…]}`), `context` (most input tokens, or null) and `price`: US dollars per million
    tokens by kind (`input`, `output`, `cached`, `cache_write`), per call (`request`), and `above` (a list of the same with
    `tokens`, from which on they hold for the whole call)."""

    models: list[dict[str, Any]]


class BudgetEntry(TypedDict):
    """A limit on what models may be used. `agent`/`environment` None: of any. `subject` narrows the scopes `user`, `session` and
    `run` to one of them; None: each has this much. `limit` counts `unit`; of `cost` 10⁻⁹ US dollars. `period`s are those of UTC;
    `total` does not end. `spent` (`window`, `amount`) is what control knew to be used when it said this, for ledgers that
    know less."""

    id: str
    scope: Literal["tenant", "agent", "user", "session", "run"]
    agent: str | None
    environment: str | None
    subject: str | None
    unit: Literal["requests", "tokens", "cost"]
    period: Literal["minute", "day", "month", "total"]
    limit: int
    warn: list[int]
    spent: NotRequired[dict[str, int]]


class StopEntry(TypedDict):
    """No model call of this agent (`*`: of the tenant) is made, and those under way are cut."""

    reason: str
    since: float


class SettingsEntry(TypedDict):
    """`hosts`: names that `Host` may hold besides loopback; `origins`: CORS origins allowed; `default_model`: what the name
    `default` and an unknown name lead to (None: unknown names are refused, as with `unknown_model` `refuse`);
    `audit_content`: whose calls are reported with their text: nobody's, those of agents that ask for it, everybody's."""

    hosts: list[str]
    origins: list[str]
    default_model: str | None
    max_body_bytes: int
    unknown_model: NotRequired[Literal["default", "refuse"]]
    audit_content: NotRequired[Literal["never", "off", "on"]]


class Snapshot(TypedDict):
    epoch: str
    version: int
    entries: dict[str, Any]


class Delta(TypedDict):
    epoch: str
    previous: int
    version: int
    set: dict[str, Any]
    delete: list[str]


def resolve_model(entries: Mapping[str, ModelEntry], name: str) -> ModelEntry | None:
    """The entry a name leads to (`entries` by name, without `model/`), `upstream_model` filled in; None if nothing fits."""
    if "*" in name:
        return None
    if (entry := entries.get(name)) is not None:
        return entry
    fitting = [pattern for pattern in entries if pattern.endswith("*") and name.startswith(pattern[:-1])]
    if not fitting:
        return None
    pattern = max(fitting, key=len)
    entry = entries[pattern]
    return {**entry, "upstream_model": entry["upstream_model"].replace("*", name[len(pattern) - 1 :], 1)}
