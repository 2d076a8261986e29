"""Who is calling, and what each role may do. Every decision falls through to no."""

from dataclasses import dataclass
from enum import StrEnum

from nexus.core import errors


class Role(StrEnum):
    """Roles within a tenant; `ADMIN` also crosses tenants and manages the host."""

    ADMIN = "admin"
    DEVELOPER = "developer"
    RUNNER = "runner"
    VIEWER = "viewer"


class Action(StrEnum):
    RUN = "run"
    READ = "read"
    DEPLOY = "deploy"
    READ_AUDIT = "read_audit"
    MANAGE_KEYS = "manage_keys"
    MANAGE_HOST = "manage_host"


ALLOWED: dict[Role, frozenset[Action]] = {
    Role.ADMIN: frozenset(Action),
    Role.DEVELOPER: frozenset({Action.RUN, Action.READ, Action.DEPLOY}),
    Role.RUNNER: frozenset({Action.RUN, Action.READ}),
    Role.VIEWER: frozenset({Action.READ}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authenticated caller. `environment` and `agents` narrow a key; None means any."""

    id: str
    tenant: str
    roles: frozenset[Role]
    environment: str | None = None
    agents: frozenset[str] | None = None

    def may(self, action: Action, *, agent: str | None = None) -> bool:
        if agent is not None and self.agents is not None and agent not in self.agents:
            return False
        return any(action in ALLOWED[role] for role in self.roles)

    def require(self, action: Action, *, agent: str | None = None) -> None:
        """Nothing, or `Forbidden` (code `auth.forbidden`) naming the action and the roles that would allow it."""
        if self.may(action, agent=agent):
            return
        able = ", ".join(role for role in Role if action in ALLOWED[role])
        raise errors.Forbidden(
            f"key {self.id} may not {action}" + (f" agent {agent!r}" if agent else ""),
            cause=f"this needs one of the roles {able}",
            next_step="ask an admin for a key with that role: nexus keys create --role ...",
        )
