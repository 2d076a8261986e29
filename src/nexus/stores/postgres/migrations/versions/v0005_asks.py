"""Tasks: questions to people, replays, and the requests of recorded calls."""

from alembic import op

revision = "0005_asks"
down_revision = "0004_task_queue"

_UP = (
    """
    ALTER TABLE tasks
      ADD COLUMN asking BOOLEAN DEFAULT false NOT NULL,
      ADD COLUMN waits INTEGER DEFAULT 0 NOT NULL,
      ADD COLUMN replay_of TEXT
    """,
    """
    CREATE TABLE task_asks (
      id TEXT NOT NULL,
      task_id TEXT NOT NULL,
      tenant TEXT NOT NULL,
      key TEXT NOT NULL,
      question TEXT NOT NULL,
      shape TEXT NOT NULL,
      status TEXT NOT NULL,
      answer TEXT,
      answered_by TEXT,
      opened_at DOUBLE PRECISION NOT NULL,
      expires_at DOUBLE PRECISION,
      answered_at DOUBLE PRECISION,
      told BOOLEAN DEFAULT false NOT NULL,
      used BOOLEAN DEFAULT false NOT NULL,
      CONSTRAINT pk_task_asks PRIMARY KEY (id),
      CONSTRAINT uq_task_asks_task_id_key UNIQUE (task_id, key),
      CONSTRAINT fk_task_asks_task_id FOREIGN KEY(task_id) REFERENCES tasks (id) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX ix_task_asks_open ON task_asks (tenant, opened_at) WHERE status = 'open'",
    "CREATE INDEX ix_task_asks_expiring ON task_asks (expires_at) WHERE status = 'open' AND expires_at IS NOT NULL",
    "ALTER TABLE run_steps ADD COLUMN request BYTEA",
    "ALTER TABLE webhook_deliveries ADD COLUMN ask_id TEXT",
    "ALTER TABLE webhook_deliveries DROP CONSTRAINT uq_webhook_deliveries_task_id",
    "CREATE UNIQUE INDEX ix_webhook_deliveries_end ON webhook_deliveries (task_id) WHERE ask_id IS NULL",
    "CREATE UNIQUE INDEX ix_webhook_deliveries_ask ON webhook_deliveries (task_id, ask_id) WHERE ask_id IS NOT NULL",
)

_DOWN = (
    "DELETE FROM webhook_deliveries WHERE ask_id IS NOT NULL",
    "DROP INDEX ix_webhook_deliveries_ask",
    "DROP INDEX ix_webhook_deliveries_end",
    "ALTER TABLE webhook_deliveries ADD CONSTRAINT uq_webhook_deliveries_task_id UNIQUE (task_id)",
    "ALTER TABLE webhook_deliveries DROP COLUMN ask_id",
    "ALTER TABLE run_steps DROP COLUMN request",
    "DROP TABLE task_asks",
    "ALTER TABLE tasks DROP COLUMN asking, DROP COLUMN waits, DROP COLUMN replay_of",
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
