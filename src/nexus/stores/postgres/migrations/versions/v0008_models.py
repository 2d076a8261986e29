"""Models: providers, aliases, prices, budgets, stops, notices; and what a model call cost, for whom."""

from alembic import op

revision = "0008_models"
down_revision = "0011_sessions"

_COLUMNS = (
    "session_id TEXT",
    "user_id TEXT",
    "principal TEXT",
    "requested TEXT",
    "cached_tokens BIGINT",
    "cost_nano BIGINT",
    "attempts INTEGER",
    "estimated BOOLEAN",
    "cached BOOLEAN",
    "outcome TEXT",
)
_UP = (
    """
    CREATE TABLE model_settings (
      kind TEXT NOT NULL,
      name TEXT NOT NULL,
      value JSONB NOT NULL,
      sealed BYTEA,
      updated_at DOUBLE PRECISION NOT NULL,
      updated_by TEXT NOT NULL,
      CONSTRAINT pk_model_settings PRIMARY KEY (kind, name)
    )
    """,
    """
    CREATE TABLE model_budgets (
      tenant TEXT NOT NULL,
      id TEXT NOT NULL,
      value JSONB NOT NULL,
      updated_at DOUBLE PRECISION NOT NULL,
      updated_by TEXT NOT NULL,
      CONSTRAINT pk_model_budgets PRIMARY KEY (tenant, id)
    )
    """,
    """
    CREATE TABLE model_stops (
      tenant TEXT NOT NULL,
      agent TEXT NOT NULL,
      reason TEXT NOT NULL,
      since DOUBLE PRECISION NOT NULL,
      stopped_by TEXT NOT NULL,
      CONSTRAINT pk_model_stops PRIMARY KEY (tenant, agent)
    )
    """,
    """
    CREATE TABLE model_notices (
      id TEXT NOT NULL,
      tenant TEXT NOT NULL,
      budget TEXT NOT NULL,
      value JSONB NOT NULL,
      url TEXT,
      at DOUBLE PRECISION NOT NULL,
      status TEXT NOT NULL,
      attempts INTEGER NOT NULL,
      next_at DOUBLE PRECISION,
      last_error TEXT,
      CONSTRAINT pk_model_notices PRIMARY KEY (id)
    )
    """,
    "CREATE INDEX ix_model_notices_tenant ON model_notices (tenant, at)",
    "CREATE INDEX ix_model_notices_due ON model_notices (next_at) WHERE status = 'pending'",
    "ALTER TABLE model_records " + ", ".join(f"ADD COLUMN {column}" for column in _COLUMNS),
    "CREATE INDEX ix_model_records_time ON model_records (tenant, started_at)",
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP INDEX ix_model_records_time")
    for column in _COLUMNS:
        op.execute(f"ALTER TABLE model_records DROP COLUMN {column.split()[0]}")
    for name in ("model_notices", "model_stops", "model_budgets", "model_settings"):
        op.execute(f"DROP TABLE {name}")
