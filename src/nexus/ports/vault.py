"""Where sealed secrets and API keys are kept. Nothing readable crosses these ports. Adapters: `stores.postgres.access`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A value encrypted under a data key of its own, which is encrypted under the master key named by `key_id`."""

    sealed: bytes = field(repr=False)
    wrapped_key: bytes = field(repr=False)
    key_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRow:
    tenant: str
    agent: str
    name: str
    value: Sealed
    fingerprint: str
    version: int
    updated_at: float
    updated_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """An API key as stored: by its hash."""

    id: str
    tenant: str
    name: str
    hash: str = field(repr=False)
    roles: tuple[str, ...]
    environment: str | None = None
    agents: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None


class SecretStore(Protocol):
    async def put_secret(self, row: SecretRow) -> SecretRow:
        """Insert, or replace with `version` raised by one; the row as stored."""
        ...

    async def secrets(self, tenant: str, agent: str) -> Sequence[SecretRow]:
        """By name; empty when there are none."""
        ...

    async def drop_secret(self, tenant: str, agent: str, name: str) -> bool: ...

    async def drop_secrets(self, tenant: str, agent: str) -> None: ...

    async def platform_key(self, name: str, fresh: Sealed) -> Sealed:
        """The stored key of that name; `fresh` becomes it when there is none (the first writer wins)."""
        ...

    async def rewrap(self, old_key_id: str, turn: "Rewrap") -> int:
        """Replace every wrapped key under `old_key_id` by `turn(sealed)`, in one transaction; how many there were."""
        ...


class Rewrap(Protocol):
    def __call__(self, sealed: Sealed) -> Sealed: ...


class IdentityStore(Protocol):
    async def put_tenant(self, name: str, *, at: float) -> bool:
        """False when it was there already."""
        ...

    async def tenants(self) -> Sequence[tuple[str, float]]:
        """Names and creation times, by name."""
        ...

    async def put_key(self, row: KeyRow) -> bool:
        """False when a key with this hash was there already."""
        ...

    async def keys(self, tenant: str | None = None) -> Sequence[KeyRow]:
        """Of one tenant, or of all; revoked ones too, oldest first."""
        ...

    async def key_by_hash(self, key_hash: str) -> KeyRow | None: ...

    async def revoke_key(self, key_id: str, *, tenant: str | None, at: float) -> KeyRow | None:
        """Revoke (again is the same); None when there is no such key for this tenant (None: any tenant)."""
        ...
