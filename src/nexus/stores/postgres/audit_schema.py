"""Tables of the audit trail. `audit_records` is only ever appended to, and deleted from at its old end."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from nexus.stores.postgres.metadata import METADATA

AUDIT_CHAINS = sa.Table(
    "audit_chains",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("head_seq", sa.BigInteger, nullable=False),
    sa.Column("head_hash", postgresql.BYTEA, nullable=False),
    sa.Column("head_seal", postgresql.BYTEA, nullable=False),
    sa.Column("floor_seq", sa.BigInteger, nullable=False),
    sa.Column("floor_hash", postgresql.BYTEA, nullable=False),
    sa.Column("floor_seal", postgresql.BYTEA, nullable=False),
)

AUDIT_RECORDS = sa.Table(
    "audit_records",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("agent", sa.Text, nullable=False),
    sa.Column("environment", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("hash", postgresql.BYTEA, nullable=False),
    sa.Column("seal", postgresql.BYTEA, nullable=False),
    sa.UniqueConstraint("tenant", "id"),
)

AUDIT_CONTENTS = sa.Table(
    "audit_contents",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False, index=True),
)
