"""Tasks: fewer index entries for a task, no look at the task for each of its events."""

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
    "ALTER TABLE tasks SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05)",
)

_DOWN = (
    "ALTER TABLE tasks RESET (autovacuum_vacuum_scale_factor, autovacuum_analyze_scale_factor)",
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
