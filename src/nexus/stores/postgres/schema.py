"""Tables of the hosting side. Times are seconds since the epoch; every row that belongs to a tenant names it."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from nexus.stores.postgres.metadata import METADATA

_JSON = postgresql.JSONB(none_as_null=True)
_TIME = sa.Double


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


TENANTS = sa.Table(
    "tenants",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("created_at", _TIME, nullable=False),
)

API_KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.ForeignKey("tenants.name"), nullable=False, index=True),
    _text("name"),
    sa.Column("hash", sa.Text, nullable=False, unique=True),
    sa.Column("roles", postgresql.ARRAY(sa.Text), nullable=False),
    _text("environment", nullable=True),
    sa.Column("agents", postgresql.ARRAY(sa.Text)),
    sa.Column("requests_per_minute", sa.Integer),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("expires_at", _TIME),
    sa.Column("revoked_at", _TIME),
)

AGENTS = sa.Table(
    "agents",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.ForeignKey("tenants.name"), nullable=False),
    _text("name"),
    sa.Column("created_at", _TIME, nullable=False),
    sa.UniqueConstraint("tenant", "name"),
)

VERSIONS = sa.Table(
    "versions",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    _text("tenant"),
    _text("agent"),
    _text("version"),
    _text("digest"),
    _text("entrypoint"),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("config", _JSON, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    _text("created_by"),
    sa.UniqueConstraint("tenant", "agent", "version"),
    sa.ForeignKeyConstraint(["tenant", "agent"], ["agents.tenant", "agents.name"], ondelete="CASCADE"),
)

DEPLOYMENTS = sa.Table(
    "deployments",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    _text("tenant"),
    _text("agent"),
    _text("environment"),
    _text("target"),
    sa.Column("target_revision", sa.Integer),
    sa.Column("active_revision", sa.Integer),
    sa.Column("replicas", sa.Integer, nullable=False),
    sa.Column("scaling", _JSON, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("updated_at", _TIME, nullable=False),
    sa.UniqueConstraint("tenant", "agent", "environment"),
    sa.ForeignKeyConstraint(["tenant", "agent"], ["agents.tenant", "agents.name"]),
)

REVISIONS = sa.Table(
    "revisions",
    METADATA,
    sa.Column("deployment_id", sa.ForeignKey("deployments.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    _text("tenant"),
    _text("version_id"),
    _text("version"),
    _text("phase"),
    _text("reason"),
    sa.Column("replicas", sa.Integer, nullable=False),
    sa.Column("settings", _JSON, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    _text("created_by"),
    sa.Column("ended_at", _TIME),
    sa.Column("problem", _JSON),
    sa.Column("strategy", _JSON),
    sa.Column("progress", _JSON),
)

INSTANCES = sa.Table(
    "instances",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("deployment_id", sa.ForeignKey("deployments.id", ondelete="CASCADE"), nullable=False, index=True),
    _text("tenant"),
    sa.Column("revision", sa.Integer, nullable=False),
    _text("target"),
    sa.Column("token_hash", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("ready_at", _TIME),
)

ROLLOUT_EVENTS = sa.Table(
    "rollout_events",
    METADATA,
    sa.Column("seq", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("deployment_id", sa.ForeignKey("deployments.id", ondelete="CASCADE"), nullable=False),
    _text("tenant"),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("at", _TIME, nullable=False),
    sa.Column("event", _JSON, nullable=False),
    sa.Index(None, "deployment_id", "seq"),
)

SECRETS = sa.Table(
    "secrets",
    METADATA,
    sa.Column("tenant", sa.ForeignKey("tenants.name"), primary_key=True),
    sa.Column("agent", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("wrapped_key", sa.LargeBinary, nullable=False),
    _text("key_id"),
    _text("fingerprint"),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("updated_at", _TIME, nullable=False),
    _text("updated_by"),
)

PLATFORM_KEYS = sa.Table(
    "platform_keys",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("wrapped_key", sa.LargeBinary, nullable=False),
    _text("key_id"),
)

IDEMPOTENCY_KEYS = sa.Table(
    "idempotency_keys",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    _text("request"),
    sa.Column("answer", _JSON, nullable=False),
    sa.Column("created_at", _TIME, nullable=False, index=True),
)
