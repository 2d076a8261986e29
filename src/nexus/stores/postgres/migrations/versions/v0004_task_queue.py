"""Tasks: delayed starts, time-outs, retries, pauses, dead letters, limits of lanes, schedules, recorded calls."""

from alembic import op

revision = "0004_task_queue"
down_revision = "0003_rollouts"

_UP = (
    """
    ALTER TABLE tasks
      ADD COLUMN parked BOOLEAN DEFAULT false NOT NULL,
      ADD COLUMN paused BOOLEAN DEFAULT false NOT NULL,
      ADD COLUMN dead BOOLEAN DEFAULT false NOT NULL,
      ADD COLUMN expires_at DOUBLE PRECISION,
      ADD COLUMN end_by DOUBLE PRECISION,
      ADD COLUMN run_timeout_s DOUBLE PRECISION,
      ADD COLUMN retry TEXT,
      ADD COLUMN origin TEXT
    """,
    "DROP INDEX ix_tasks_queue",
    """
    CREATE INDEX ix_tasks_queue ON tasks (tenant, agent, environment, priority DESC, number)
      WHERE phase = 'pending' AND NOT parked
    """,
    "CREATE INDEX ix_tasks_parked ON tasks (available_at) WHERE phase = 'pending' AND parked",
    "CREATE INDEX ix_tasks_expiring ON tasks (expires_at) WHERE phase IN ('pending', 'waiting') AND expires_at IS NOT NULL",
    "CREATE INDEX ix_tasks_dead ON tasks (tenant, number DESC) WHERE dead",
    "CREATE INDEX ix_tasks_finished ON tasks (finished_at) WHERE finished_at IS NOT NULL",
    """
    CREATE TABLE task_lanes (
      tenant TEXT NOT NULL,
      agent TEXT NOT NULL,
      environment TEXT NOT NULL,
      concurrency INTEGER NOT NULL,
      CONSTRAINT pk_task_lanes PRIMARY KEY (tenant, agent, environment)
    )
    """,
    """
    CREATE TABLE task_schedules (
      id TEXT NOT NULL,
      tenant TEXT NOT NULL,
      agent TEXT NOT NULL,
      environment TEXT NOT NULL,
      name TEXT NOT NULL,
      principal TEXT NOT NULL,
      cron TEXT,
      timezone TEXT NOT NULL,
      catch_up TEXT NOT NULL,
      template BYTEA NOT NULL,
      active BOOLEAN DEFAULT true NOT NULL,
      next_at DOUBLE PRECISION,
      last_at DOUBLE PRECISION,
      last_task_id TEXT,
      fired INTEGER DEFAULT 0 NOT NULL,
      missed INTEGER DEFAULT 0 NOT NULL,
      created_at DOUBLE PRECISION NOT NULL,
      CONSTRAINT pk_task_schedules PRIMARY KEY (id),
      CONSTRAINT uq_task_schedules_tenant_name UNIQUE (tenant, name)
    )
    """,
    "CREATE INDEX ix_task_schedules_due ON task_schedules (next_at) WHERE active AND next_at IS NOT NULL",
    """
    CREATE TABLE run_steps (
      task_id TEXT NOT NULL,
      key TEXT NOT NULL,
      position INTEGER NOT NULL,
      kind TEXT NOT NULL,
      status TEXT NOT NULL,
      attempt INTEGER NOT NULL,
      head TEXT,
      body BYTEA,
      sent_at DOUBLE PRECISION NOT NULL,
      done_at DOUBLE PRECISION,
      CONSTRAINT pk_run_steps PRIMARY KEY (task_id, key),
      CONSTRAINT fk_run_steps_task_id FOREIGN KEY(task_id) REFERENCES tasks (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE webhook_keys (
      tenant TEXT NOT NULL,
      generation INTEGER NOT NULL,
      rotated_at DOUBLE PRECISION NOT NULL,
      CONSTRAINT pk_webhook_keys PRIMARY KEY (tenant)
    )
    """,
)

_DOWN = (
    "DROP TABLE webhook_keys",
    "DROP TABLE run_steps",
    "DROP TABLE task_schedules",
    "DROP TABLE task_lanes",
    "DROP INDEX ix_tasks_finished",
    "DROP INDEX ix_tasks_dead",
    "DROP INDEX ix_tasks_expiring",
    "DROP INDEX ix_tasks_parked",
    "DROP INDEX ix_tasks_queue",
    """
    ALTER TABLE tasks DROP COLUMN parked, DROP COLUMN paused, DROP COLUMN dead, DROP COLUMN expires_at, DROP COLUMN end_by,
      DROP COLUMN run_timeout_s, DROP COLUMN retry, DROP COLUMN origin
    """,
    "CREATE INDEX ix_tasks_queue ON tasks (tenant, agent, environment, priority DESC, number) WHERE phase = 'pending'",
)


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
