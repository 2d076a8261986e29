"""Checkpoints of LangGraph graphs: one row a checkpoint, one a channel's value, one a pending write."""

from alembic import op

revision = "0012_checkpoints"
down_revision = "0006_triggers"

_PLACE = "tenant TEXT NOT NULL, agent TEXT NOT NULL, environment TEXT NOT NULL, thread TEXT NOT NULL, ns TEXT NOT NULL"
_UP = (
    f"""
    CREATE TABLE graph_checkpoints (
      {_PLACE},
      id TEXT NOT NULL,
      parent TEXT,
      run_id TEXT,
      versions JSONB NOT NULL,
      kind TEXT NOT NULL,
      body BYTEA NOT NULL,
      meta_kind TEXT NOT NULL,
      meta BYTEA NOT NULL,
      created_at DOUBLE PRECISION NOT NULL,
      CONSTRAINT pk_graph_checkpoints PRIMARY KEY (tenant, agent, environment, thread, ns, id)
    )
    """,
    "CREATE INDEX ix_graph_checkpoints_created ON graph_checkpoints (created_at)",
    f"""
    CREATE TABLE graph_values (
      {_PLACE},
      channel TEXT NOT NULL,
      version TEXT NOT NULL,
      kind TEXT NOT NULL,
      body BYTEA NOT NULL,
      CONSTRAINT pk_graph_values PRIMARY KEY (tenant, agent, environment, thread, ns, channel, version)
    )
    """,
    f"""
    CREATE TABLE graph_writes (
      {_PLACE},
      checkpoint TEXT NOT NULL,
      task TEXT NOT NULL,
      idx INTEGER NOT NULL,
      task_path TEXT NOT NULL,
      channel TEXT NOT NULL,
      kind TEXT NOT NULL,
      body BYTEA NOT NULL,
      CONSTRAINT pk_graph_writes PRIMARY KEY (tenant, agent, environment, thread, ns, checkpoint, task, idx)
    )
    """,
)

_DOWN = ("DROP TABLE graph_writes", "DROP TABLE graph_values", "DROP TABLE graph_checkpoints")


def upgrade() -> None:
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in _DOWN:
        op.execute(statement)
