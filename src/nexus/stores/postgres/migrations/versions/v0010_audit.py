"""The audit trail: chained records by tenant, and their content beside them."""

from alembic import op

revision = "0010_audit"
down_revision = "0007_queue_speed"

_UP = (
    """
    CREATE TABLE audit_chains (
      tenant TEXT NOT NULL,
      head_seq BIGINT NOT NULL,
      head_hash BYTEA NOT NULL,
      head_seal BYTEA NOT NULL,
      floor_seq BIGINT NOT NULL,
      floor_hash BYTEA NOT NULL,
      floor_seal BYTEA NOT NULL,
      CONSTRAINT pk_audit_chains PRIMARY KEY (tenant)
    )
    """,
    """
    CREATE TABLE audit_records (
      tenant TEXT NOT NULL,
      seq BIGINT NOT NULL,
      id TEXT NOT NULL,
      at DOUBLE PRECISION NOT NULL,
      agent TEXT NOT NULL,
      environment TEXT NOT NULL,
      run_id TEXT NOT NULL,
      record TEXT NOT NULL,
      hash BYTEA NOT NULL,
      seal BYTEA NOT NULL,
      CONSTRAINT pk_audit_records PRIMARY KEY (tenant, seq),
      CONSTRAINT uq_audit_records_tenant_id UNIQUE (tenant, id)
    )
    """,
    """
    CREATE TABLE audit_contents (
      tenant TEXT NOT NULL,
      seq BIGINT NOT NULL,
      content TEXT NOT NULL,
      expires_at DOUBLE PRECISION NOT NULL,
      CONSTRAINT pk_audit_contents PRIMARY KEY (tenant, seq)
    )
    """,
    "CREATE INDEX ix_audit_contents_expires_at ON audit_contents (expires_at)",
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for name in ("audit_contents", "audit_records", "audit_chains"):
        op.execute(f"DROP TABLE {name}")
