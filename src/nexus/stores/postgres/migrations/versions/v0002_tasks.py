"""Tasks: the queue and its events, webhooks, finished runs and model calls, session state."""

from alembic import op

revision = "0002_tasks"
down_revision = "0001_hosting"

_STATEMENTS = (
    """
    CREATE FUNCTION nexus_now() RETURNS float8 LANGUAGE sql VOLATILE AS
      'SELECT extract(epoch FROM clock_timestamp())::float8'
    """,
    """
    CREATE TABLE tasks (
      id TEXT NOT NULL,
      number BIGINT GENERATED ALWAYS AS IDENTITY,
      tenant TEXT NOT NULL,
      agent TEXT NOT NULL,
      environment TEXT NOT NULL,
      principal TEXT NOT NULL,
      body BYTEA NOT NULL,
      digest TEXT NOT NULL,
      session_id TEXT,
      webhook_url TEXT,
      idempotency_key TEXT,
      traceparent TEXT,
      priority INTEGER DEFAULT 0 NOT NULL,
      max_attempts INTEGER DEFAULT 3 NOT NULL,
      phase TEXT NOT NULL,
      owner TEXT,
      fence BIGINT DEFAULT 0 NOT NULL,
      attempt INTEGER DEFAULT 0 NOT NULL,
      strikes INTEGER DEFAULT 0 NOT NULL,
      deferrals INTEGER DEFAULT 0 NOT NULL,
      last_seq INTEGER DEFAULT 0 NOT NULL,
      available_at DOUBLE PRECISION,
      deferred_at DOUBLE PRECISION,
      cancel_requested BOOLEAN DEFAULT false NOT NULL,
      progress DOUBLE PRECISION,
      message TEXT,
      output TEXT,
      metadata TEXT,
      error TEXT,
      created_at DOUBLE PRECISION NOT NULL,
      started_at DOUBLE PRECISION,
      finished_at DOUBLE PRECISION,
      CONSTRAINT pk_tasks PRIMARY KEY (id),
      CONSTRAINT uq_tasks_tenant_idempotency_key UNIQUE (tenant, idempotency_key)
    )
    """,
    """
    CREATE INDEX ix_tasks_queue ON tasks (tenant, agent, environment, priority DESC, number) WHERE phase = 'pending'
    """,
    """
    CREATE INDEX ix_tasks_running ON tasks (owner) WHERE phase = 'running'
    """,
    """
    CREATE INDEX ix_tasks_tenant_number ON tasks (tenant, number DESC)
    """,
    """
    CREATE TABLE task_events (
      task_id TEXT NOT NULL,
      seq INTEGER NOT NULL,
      name TEXT NOT NULL,
      data TEXT NOT NULL,
      at DOUBLE PRECISION NOT NULL,
      CONSTRAINT pk_task_events PRIMARY KEY (task_id, seq),
      CONSTRAINT fk_task_events_task_id FOREIGN KEY(task_id) REFERENCES tasks (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE task_owners (
      owner TEXT NOT NULL,
      lock_key INTEGER NOT NULL,
      beats BIGINT DEFAULT 0 NOT NULL,
      CONSTRAINT pk_task_owners PRIMARY KEY (owner)
    )
    """,
    """
    CREATE TABLE webhook_deliveries (
      id TEXT NOT NULL,
      task_id TEXT NOT NULL,
      tenant TEXT NOT NULL,
      url TEXT NOT NULL,
      host TEXT NOT NULL,
      status TEXT NOT NULL,
      attempts INTEGER DEFAULT 0 NOT NULL,
      last_error TEXT,
      last_status INTEGER,
      next_at DOUBLE PRECISION NOT NULL,
      set_at DOUBLE PRECISION NOT NULL,
      created_at DOUBLE PRECISION NOT NULL,
      ended_at DOUBLE PRECISION,
      CONSTRAINT pk_webhook_deliveries PRIMARY KEY (id),
      CONSTRAINT uq_webhook_deliveries_task_id UNIQUE (task_id),
      CONSTRAINT fk_webhook_deliveries_task_id FOREIGN KEY(task_id) REFERENCES tasks (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX ix_webhook_deliveries_due ON webhook_deliveries (next_at) WHERE status = 'pending'
    """,
    """
    CREATE TABLE run_records (
      id TEXT NOT NULL,
      tenant TEXT NOT NULL,
      agent TEXT NOT NULL,
      environment TEXT NOT NULL,
      deployment_id TEXT NOT NULL,
      version TEXT NOT NULL,
      instance_id TEXT NOT NULL,
      session_id TEXT NOT NULL,
      principal TEXT NOT NULL,
      mode TEXT NOT NULL,
      outcome TEXT NOT NULL,
      status INTEGER NOT NULL,
      code TEXT,
      started_at DOUBLE PRECISION NOT NULL,
      duration_s DOUBLE PRECISION NOT NULL,
      bytes_in BIGINT NOT NULL,
      bytes_out BIGINT NOT NULL,
      trace_id TEXT NOT NULL,
      CONSTRAINT pk_run_records PRIMARY KEY (id, started_at, instance_id)
    )
    """,
    """
    CREATE INDEX ix_run_records_agent ON run_records (tenant, agent, started_at DESC, id DESC)
    """,
    """
    CREATE INDEX ix_run_records_newest ON run_records (tenant, started_at DESC, id DESC)
    """,
    """
    CREATE TABLE model_records (
      id TEXT NOT NULL,
      run_id TEXT NOT NULL,
      tenant TEXT NOT NULL,
      agent TEXT NOT NULL,
      environment TEXT NOT NULL,
      instance_id TEXT NOT NULL,
      model TEXT NOT NULL,
      provider TEXT NOT NULL,
      input_tokens BIGINT NOT NULL,
      output_tokens BIGINT NOT NULL,
      status INTEGER NOT NULL,
      started_at DOUBLE PRECISION NOT NULL,
      duration_s DOUBLE PRECISION NOT NULL,
      CONSTRAINT pk_model_records PRIMARY KEY (id)
    )
    """,
    """
    CREATE INDEX ix_model_records_run ON model_records (tenant, run_id)
    """,
    """
    CREATE TABLE session_states (
      tenant TEXT NOT NULL,
      agent TEXT NOT NULL,
      environment TEXT NOT NULL,
      session_id TEXT NOT NULL,
      state TEXT NOT NULL,
      version BIGINT NOT NULL,
      updated_at DOUBLE PRECISION NOT NULL,
      CONSTRAINT pk_session_states PRIMARY KEY (tenant, agent, environment, session_id)
    )
    """,
)

_TABLES = (
    "session_states",
    "model_records",
    "run_records",
    "webhook_deliveries",
    "task_owners",
    "task_events",
    "tasks",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    for table in _TABLES:
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION nexus_now()")
