"""Tasks: fewer index entries for a task, no look at the task for each of its events, shares of keys."""

from alembic import op

revision = "0007_queue_speed"
down_revision = "0005_asks"

_UP = (
    "ALTER TABLE tasks DROP CONSTRAINT uq_tasks_tenant_idempotency_key",
    "CREATE UNIQUE INDEX ix_tasks_key ON tasks (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL",
    "ALTER TABLE task_events DROP CONSTRAINT fk_task_events_task_id",
    "CREATE INDEX ix_tasks_delayed ON tasks (deferred_at) WHERE phase = 'pending' AND parked",
    "DROP INDEX ix_webhook_deliveries_due",
    "CREATE INDEX ix_webhook_deliveries_due ON webhook_deliveries (host, next_at) WHERE status = 'pending'",
    "ALTER TABLE tasks ADD COLUMN share TEXT DEFAULT '' NOT NULL",
    "DROP INDEX ix_tasks_queue",
    "CREATE INDEX ix_tasks_queue ON tasks (tenant, agent, environment, share, priority DESC, number)"
    " WHERE phase = 'pending' AND NOT parked",
    "ALTER TABLE task_lanes ADD COLUMN share TEXT DEFAULT '' NOT NULL",
    "ALTER TABLE task_lanes DROP CONSTRAINT pk_task_lanes",
    "ALTER TABLE task_lanes ADD CONSTRAINT pk_task_lanes PRIMARY KEY (tenant, agent, environment, share)",
    "ALTER TABLE tasks SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05)",
)

_DOWN = (
    "ALTER TABLE tasks RESET (autovacuum_vacuum_scale_factor, autovacuum_analyze_scale_factor)",
    "DELETE FROM task_lanes WHERE share <> ''",
    "ALTER TABLE task_lanes DROP CONSTRAINT pk_task_lanes",
    "ALTER TABLE task_lanes ADD CONSTRAINT pk_task_lanes PRIMARY KEY (tenant, agent, environment)",
    "ALTER TABLE task_lanes DROP COLUMN share",
    "DROP INDEX ix_tasks_queue",
    "CREATE INDEX ix_tasks_queue ON tasks (tenant, agent, environment, priority DESC, number)"
    " WHERE phase = 'pending' AND NOT parked",
    "ALTER TABLE tasks DROP COLUMN share",
    "DROP INDEX ix_webhook_deliveries_due",
    "CREATE INDEX ix_webhook_deliveries_due ON webhook_deliveries (next_at) WHERE status = 'pending'",
    "DROP INDEX ix_tasks_delayed",
    "DELETE FROM task_events e WHERE NOT EXISTS (SELECT 1 FROM tasks t WHERE t.id = e.task_id)",
    "ALTER TABLE task_events ADD CONSTRAINT fk_task_events_task_id FOREIGN KEY (task_id) REFERENCES tasks (id) ON DELETE CASCADE",
    "DROP INDEX ix_tasks_key",
    "ALTER TABLE tasks ADD CONSTRAINT uq_tasks_tenant_idempotency_key UNIQUE (tenant, idempotency_key)",
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
