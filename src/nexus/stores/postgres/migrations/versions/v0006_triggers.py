"""Triggers: signed webhooks and queue messages that become tasks, and the results that are published back."""

from alembic import op

revision = "0006_triggers"
down_revision = "0008_models"

_UP = (
    """
    CREATE TABLE task_triggers (
      id TEXT NOT NULL,
      tenant TEXT NOT NULL,
      agent TEXT NOT NULL,
      environment TEXT NOT NULL,
      name TEXT NOT NULL,
      kind TEXT NOT NULL,
      principal TEXT NOT NULL,
      settings TEXT NOT NULL,
      sealed BYTEA NOT NULL,
      template BYTEA NOT NULL,
      active BOOLEAN DEFAULT true NOT NULL,
      taken BIGINT DEFAULT 0 NOT NULL,
      refused BIGINT DEFAULT 0 NOT NULL,
      last_at DOUBLE PRECISION,
      last_task_id TEXT,
      problem TEXT,
      created_at DOUBLE PRECISION NOT NULL,
      CONSTRAINT pk_task_triggers PRIMARY KEY (id),
      CONSTRAINT uq_task_triggers_tenant_name UNIQUE (tenant, name)
    )
    """,
    """
    CREATE TABLE task_replies (
      task_id TEXT NOT NULL,
      trigger_id TEXT NOT NULL,
      topic TEXT NOT NULL,
      correlation TEXT NOT NULL,
      CONSTRAINT pk_task_replies PRIMARY KEY (task_id),
      CONSTRAINT fk_task_replies_task_id FOREIGN KEY(task_id) REFERENCES tasks (id) ON DELETE CASCADE,
      CONSTRAINT fk_task_replies_trigger_id FOREIGN KEY(trigger_id) REFERENCES task_triggers (id) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX ix_task_replies_trigger ON task_replies (trigger_id)",
)

_DOWN = ("DROP TABLE task_replies", "DROP TABLE task_triggers")


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
