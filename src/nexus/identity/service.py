"""Verbs on callers: authenticate, create and revoke keys, create tenants. Keys are stored as hashes and shown once.

`changed` is called after every write, so that the route feed carries a new or revoked key to the gateways at once.
"""

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from nexus.core import deployments, environments, errors, ids, names
from nexus.core.principals import Action, Principal, Role
from nexus.kit import clock, keys, private_file, session_tokens
from nexus.ports import vault

_LOG = logging.getLogger(__name__)
DEFAULT_TENANT = "default"
OwnerOfToken = Callable[[str], Awaitable[deployments.InstanceOwner | None]]


class IdentityService:
    def __init__(
        self,
        *,
        store: vault.IdentityStore,
        owner_of_token: OwnerOfToken,
        clock: clock.Clock,
        token_hash_of: Callable[[str], str] | None = None,
        service_token: str | None = None,
    ) -> None:
        """`token_hash_of` tells the stored form of an instance's token; without it no session's token is believed.
        `service_token` is the one that dispatchers in other processes have; without it a new one is made."""
        self._store = store
        self._owner_of_token = owner_of_token
        self._token_hash_of = token_hash_of
        self._clock = clock
        self.service_token = service_token or keys.new_key(keys.SERVICE_TOKEN)
        self.changed: Callable[[], None] = lambda: None

    async def start(self, admin_key: Path) -> None:
        """Make the default tenant, and an admin key in `admin_key` (0600) when that file does not exist yet."""
        await self._store.put_tenant(DEFAULT_TENANT, at=self._clock.time())
        key = _read_or_create(admin_key)
        if not keys.has_key_shape(key):
            raise errors.Invalid(
                f"{admin_key} does not hold an API key",
                code="auth.admin_key_invalid",
                cause="the file was changed or cut off",
                next_step="remove the file and start again: a new admin key is made",
            )
        row = vault.KeyRow(
            id=ids.new_id(ids.KEY),
            tenant=DEFAULT_TENANT,
            name="admin key of this host",
            hash=keys.hash_key(key),
            roles=(Role.ADMIN.value,),
            created_at=self._clock.time(),
        )
        if await self._store.put_key(row):
            _LOG.info("the admin key in %s is now known", admin_key)

    async def authenticate(self, key: str) -> Principal:
        """The caller, or `Unauthenticated` (`auth.invalid_key`, `auth.expired`): unknown and revoked keys look alike."""
        row = await self._store.key_by_hash(keys.hash_key(key)) if keys.has_key_shape(key) else None
        if row is None or row.revoked_at is not None:
            raise errors.Unauthenticated(
                "this API key is not known",
                code="auth.invalid_key",
                cause="it is mistyped, revoked, or of another host",
                next_step="ask an admin for a key: nexus keys create",
            )
        if row.expires_at is not None and row.expires_at <= self._clock.time():
            raise errors.Unauthenticated(
                f"key {row.id} has expired", code="auth.expired", next_step="ask an admin for a new key: nexus keys create"
            )
        return principal_of(row)

    async def instance_of(self, token: str) -> deployments.InstanceOwner:
        """Whose token it is: an instance's, or that of one session's worker. `Unauthenticated` (`auth.invalid_token`) else."""
        claims = session_tokens.parse(token)
        if claims is not None and self._token_hash_of is not None:
            token_hash = self._token_hash_of(claims.instance_id)
            if session_tokens.verify(token, token_hash, now=self._clock.time()):
                owner = await self._owner_of_token(token_hash)
                if owner is not None:
                    return replace(owner, session_id=claims.session_id)
        known = token.startswith(keys.INSTANCE_TOKEN + "_") and keys.has_key_shape(token)
        owner = await self._owner_of_token(keys.hash_key(token)) if known else None
        if owner is None:
            raise errors.Unauthenticated("this is not the token of an instance", code="auth.invalid_token")
        return owner

    async def in_tenant(self, caller: Principal, tenant: str) -> Principal:
        """The same caller acting in another tenant; only for those who manage the host."""
        caller.require(Action.MANAGE_HOST)
        await self._known_tenant(tenant)
        return replace(caller, tenant=tenant)

    async def create_key(
        self,
        caller: Principal,
        *,
        name: str,
        tenant: str | None,
        roles: list[str],
        environment: str | None,
        agents: list[str] | None,
        expires_in_s: float | None,
        requests_per_minute: int | None,
    ) -> tuple[vault.KeyRow, str]:
        """The stored row and the key itself, which nobody can see again."""
        caller.require(Action.MANAGE_KEYS)
        where = tenant or caller.tenant
        await self._known_tenant(where)
        if environment is not None:
            environments.default_bounds(environment)
        for agent in agents or ():
            names.parse_label(agent)
        key, now = keys.new_key(), self._clock.time()
        row = vault.KeyRow(
            id=ids.new_id(ids.KEY),
            tenant=where,
            name=name,
            hash=keys.hash_key(key),
            roles=tuple(role.value for role in parse_roles(roles)),
            environment=environment,
            agents=None if agents is None else tuple(agents),
            requests_per_minute=requests_per_minute,
            created_at=now,
            expires_at=None if expires_in_s is None else now + expires_in_s,
        )
        await self._store.put_key(row)
        self.changed()
        return row, key

    async def list_keys(self, caller: Principal) -> list[vault.KeyRow]:
        caller.require(Action.MANAGE_KEYS)
        return list(await self._store.keys(caller.tenant))

    async def revoke_key(self, caller: Principal, key_id: str) -> vault.KeyRow:
        """Of one's own tenant, or of any for those who manage the host; `NotFound` (code `key.not_found`) otherwise."""
        caller.require(Action.MANAGE_KEYS)
        anywhere = caller.may(Action.MANAGE_HOST)
        row = await self._store.revoke_key(key_id, tenant=None if anywhere else caller.tenant, at=self._clock.time())
        if row is None:
            raise errors.NotFound(
                f"there is no key {key_id[:64]!r}", code="key.not_found", next_step="see what there is: nexus keys list"
            )
        self.changed()
        return row

    async def create_tenant(self, caller: Principal, name: str) -> float:
        """When it was created; `Conflict` (code `tenant.exists`) when there is one of that name."""
        caller.require(Action.MANAGE_HOST)
        now = self._clock.time()
        if not await self._store.put_tenant(names.parse_label(name, "tenant name"), at=now):
            raise errors.Conflict(
                f"there is a tenant {name!r} already",
                code="tenant.exists",
                next_step=f"make a key for it: nexus keys create --tenant {name}",
            )
        return now

    async def list_tenants(self, caller: Principal) -> list[tuple[str, float]]:
        """All for those who manage the host; one's own for everybody else."""
        found = await self._store.tenants()
        return list(found) if caller.may(Action.MANAGE_HOST) else [row for row in found if row[0] == caller.tenant]

    async def live_keys(self) -> list[vault.KeyRow]:
        """Every key that is not revoked, of all tenants: what the route feed carries."""
        return [row for row in await self._store.keys() if row.revoked_at is None]

    async def _known_tenant(self, name: str) -> None:
        if name not in {known for known, _ in await self._store.tenants()}:
            raise errors.NotFound(
                f"there is no tenant {name[:64]!r}",
                code="tenant.not_found",
                next_step=f"create it: nexus tenants create {name[:64]}",
            )


def principal_of(row: vault.KeyRow) -> Principal:
    return Principal(
        id=row.id,
        tenant=row.tenant,
        roles=frozenset(Role(role) for role in row.roles),
        environment=row.environment,
        agents=None if row.agents is None else frozenset(row.agents),
    )


def parse_roles(values: list[str]) -> list[Role]:
    """Roles by name, or `Invalid` (code `role.unknown`) naming those there are."""
    known = {role.value: role for role in Role}
    unknown = [value for value in values if value not in known]
    if unknown or not values:
        raise errors.Invalid(
            f"unknown role {unknown[0][:64]!r}" if unknown else "a key needs at least one role",
            code="role.unknown",
            cause=f"the roles are {', '.join(known)}",
            next_step="pass --role with one of them",
        )
    return [known[value] for value in dict.fromkeys(values)]


def _read_or_create(path: Path) -> str:
    private_file.create_once(path, keys.new_key().encode() + b"\n")
    os.chmod(path, 0o600)
    return path.read_text("ascii", "replace").strip()
