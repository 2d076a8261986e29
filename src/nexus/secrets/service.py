"""Verbs on secrets: set, list, delete, rotate the master key; and for the composition root, the values of one agent.

Who calls: `api.secrets`, and the reconciler when it starts an instance. `changed` is told when a value is another one.
"""

import asyncio
import hashlib
import hmac
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from nexus.core import errors, names
from nexus.kit import clock
from nexus.ports import vault
from nexus.secrets import envelope, master_key

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
MAX_SECRETS = 200
MAX_VALUE_BYTES = 64 * 1024

Changed = Callable[[str, str], Awaitable[None]]


def parse_name(name: str) -> str:
    """A name an environment variable can have and the platform does not use, or `Invalid` (code `secret.name_invalid`)."""
    if _NAME.fullmatch(name) and not name.upper().startswith("NEXUS_"):
        return name
    shown = name if len(name) <= 80 else name[:77] + "..."
    raise errors.Invalid(
        f"{shown!r} is not a possible name of a secret",
        code="secret.name_invalid",
        cause="it becomes an environment variable: letters, digits and '_', no digit first, and not beginning with NEXUS_",
        next_step="choose a name such as EXTERNAL_API_KEY",
    )


class SecretService:
    def __init__(self, *, store: vault.SecretStore, ring: master_key.KeyRing, clock: clock.Clock) -> None:
        self._store = store
        self._ring = ring
        self._clock = clock
        self._rotating = asyncio.Lock()
        self._fingerprint_key = b""
        self.changed: Changed | None = None

    async def start(self) -> None:
        """Finish a rotation that a crash interrupted, and open the platform's own keys."""
        home_file = self._ring.file
        if home_file is not None and master_key.pending_file(home_file).exists():
            await self._turn(home_file, self._ring.current)
        self._fingerprint_key = await self.platform_key("fingerprints")

    async def platform_key(self, name: str) -> bytes:
        """256 bits of the platform's own under this name, the same for ever."""
        place = f"platform/{name}"
        fresh = envelope.seal(os.urandom(envelope.KEY_BYTES), master=self._ring.current, place=place)
        return envelope.unseal(await self._store.platform_key(name, fresh), ring=self._ring.keys, place=place)

    async def set(self, tenant: str, agent: str, name: str, value: str, *, by: str) -> vault.SecretRow:
        """Store a value; the agent's deployments restart by rolling when it is another one than before."""
        names.parse_label(agent)
        parse_name(name)
        encoded = _encode(value)
        before = {row.name: row for row in await self._store.secrets(tenant, agent)}
        if name not in before and len(before) >= MAX_SECRETS:
            raise errors.Exhausted(
                f"agent {agent!r} has {MAX_SECRETS} secrets already",
                code="secret.too_many",
                next_step=f"delete one first: nexus ai agent secret delete {agent} NAME",
            )
        fingerprint = self._fingerprint(tenant, agent, name, encoded)
        if name in before and before[name].fingerprint == fingerprint:
            return before[name]
        row = vault.SecretRow(
            tenant=tenant,
            agent=agent,
            name=name,
            value=envelope.seal(encoded, master=self._ring.current, place=_place(tenant, agent, name)),
            fingerprint=fingerprint,
            version=1,
            updated_at=self._clock.time(),
            updated_by=by,
        )
        async with self._rotating:
            stored = await self._store.put_secret(row)
        await self._tell(tenant, agent)
        return stored

    async def list(self, tenant: str, agent: str) -> list[vault.SecretRow]:
        names.parse_label(agent)
        return list(await self._store.secrets(tenant, agent))

    async def delete(self, tenant: str, agent: str, name: str) -> None:
        """`NotFound` (code `secret.not_found`) when there is none of that name."""
        names.parse_label(agent)
        if not await self._store.drop_secret(tenant, agent, name):
            raise errors.NotFound(
                f"agent {agent!r} has no secret {name[:128]!r}",
                code="secret.not_found",
                next_step=f"see what there is: nexus ai agent secret list {agent}",
            )
        await self._tell(tenant, agent)

    async def forget(self, tenant: str, agent: str) -> None:
        """Delete all of an agent's secrets, telling nobody: the agent is gone."""
        await self._store.drop_secrets(tenant, agent)

    async def values(self, tenant: str, agent: str) -> dict[str, str]:
        """The readable values by name, for a new instance of this agent and for nothing else."""
        return {
            row.name: envelope.unseal(row.value, ring=self._ring.keys, place=_place(tenant, agent, row.name)).decode()
            for row in await self._store.secrets(tenant, agent)
        }

    async def stamp(self, tenant: str, agent: str) -> tuple[str, frozenset[str]]:
        """Something that changes with any value, and the names that are set."""
        rows = await self._store.secrets(tenant, agent)
        parts = "\n".join(f"{row.name}={row.fingerprint}" for row in rows)
        return hashlib.sha256(parts.encode()).hexdigest()[:16] if rows else "", frozenset(row.name for row in rows)

    async def rotate_master_key(self) -> int:
        """Make a new master key and wrap everything with it; how many rows that were. Nothing restarts."""
        home_file = self._ring.file
        if home_file is None:
            raise errors.Conflict(
                "the master key is held by the operator (NEXUS_MASTER_KEY), so the host cannot replace it",
                code="master_key.external",
                next_step="rotate it where it is kept, after moving it into the home's master.key",
            )
        async with self._rotating:
            fresh = envelope.MasterKey(os.urandom(envelope.KEY_BYTES))
            master_key.create(master_key.pending_file(home_file), fresh)
            self._ring.adopt(fresh)
            return await self._turn(home_file, fresh)

    async def _turn(self, home_file: Path, fresh: envelope.MasterKey) -> int:
        ring, count = self._ring, 0
        for old in [key_id for key_id in ring.keys if key_id != fresh.id]:
            count += await self._store.rewrap(old, lambda sealed: envelope.rewrap(sealed, ring=ring.keys, master=fresh))
        master_key.finish_rotation(home_file)
        return count

    async def _tell(self, tenant: str, agent: str) -> None:
        if self.changed is not None:
            await self.changed(tenant, agent)

    def _fingerprint(self, tenant: str, agent: str, name: str, value: bytes) -> str:
        message = _place(tenant, agent, name).encode() + b"\0" + value
        return hmac.new(self._fingerprint_key, message, hashlib.sha256).hexdigest()[:16]


def _place(tenant: str, agent: str, name: str) -> str:
    return f"{tenant}/{agent}/{name}"


def _encode(value: str) -> bytes:
    """UTF-8 without NUL (an environment variable cannot hold one), at most 64 KiB."""
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        encoded = b"\0"
    if not encoded or b"\0" in encoded or len(encoded) > MAX_VALUE_BYTES:
        raise errors.Invalid(
            "this value cannot be a secret",
            code="secret.value_invalid",
            cause=f"it must be text of 1 to {MAX_VALUE_BYTES} bytes without NUL, since it becomes an environment variable",
            next_step="encode binary values, for example with base64",
        )
    return encoded
