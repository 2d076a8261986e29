"""Tables of tasks, their events and webhooks, of finished runs and of session state. Times are seconds since the epoch.

JSON that comes from agents is kept as ASCII text: JSONB refuses `\\u0000` and lone surrogates, which agents may well send.
"""

import sqlalchemy as sa

from nexus.stores.postgres.metadata import METADATA

_TIME = sa.Double
_PENDING = sa.text("phase = 'pending'")
_RUNNING = sa.text("phase = 'running'")


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def _count(name: str, *, default: int = 0, kind: type[sa.Integer] = sa.Integer) -> sa.Column[int]:
    return sa.Column(name, kind, nullable=False, server_default=sa.text(str(default)))


TASKS = sa.Table(
    "tasks",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, sa.Identity(always=True), nullable=False),
    _text("tenant"),
    _text("agent"),
    _text("environment"),
    _text("principal"),
    sa.Column("body", sa.LargeBinary, nullable=False),
    _text("digest"),
    _text("session_id", nullable=True),
    _text("webhook_url", nullable=True),
    _text("idempotency_key", nullable=True),
    _text("traceparent", nullable=True),
    _count("priority"),
    _count("max_attempts", default=3),
    _text("phase"),
    _text("owner", nullable=True),
    _count("fence", kind=sa.BigInteger),
    _count("attempt"),
    _count("strikes"),
    _count("deferrals"),
    _count("last_seq"),
    sa.Column("available_at", _TIME),
    sa.Column("deferred_at", _TIME),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("progress", sa.Double),
    _text("message", nullable=True),
    _text("output", nullable=True),
    _text("metadata", nullable=True),
    _text("error", nullable=True),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("started_at", _TIME),
    sa.Column("finished_at", _TIME),
    sa.UniqueConstraint("tenant", "idempotency_key"),
    sa.Index("ix_tasks_tenant_number", "tenant", sa.text("number DESC")),
    sa.Index("ix_tasks_queue", "tenant", "agent", "environment", sa.text("priority DESC"), "number", postgresql_where=_PENDING),
    sa.Index("ix_tasks_running", "owner", postgresql_where=_RUNNING),
)

TASK_EVENTS = sa.Table(
    "task_events",
    METADATA,
    sa.Column("task_id", sa.ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    _text("name"),
    _text("data"),
    sa.Column("at", _TIME, nullable=False),
)

TASK_OWNERS = sa.Table(
    "task_owners",
    METADATA,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("lock_key", sa.Integer, nullable=False),
    _count("beats", kind=sa.BigInteger),
)

WEBHOOK_DELIVERIES = sa.Table(
    "webhook_deliveries",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("task_id", sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False, unique=True),
    _text("tenant"),
    _text("url"),
    _text("host"),
    _text("status"),
    _count("attempts"),
    _text("last_error", nullable=True),
    sa.Column("last_status", sa.Integer),
    sa.Column("next_at", _TIME, nullable=False),
    sa.Column("set_at", _TIME, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("ended_at", _TIME),
    sa.Index("ix_webhook_deliveries_due", "next_at", postgresql_where=sa.text("status = 'pending'")),
)

RUN_RECORDS = sa.Table(
    "run_records",
    METADATA,
    sa.Column("id", sa.Text, nullable=False),
    _text("tenant"),
    _text("agent"),
    _text("environment"),
    _text("deployment_id"),
    _text("version"),
    _text("instance_id"),
    _text("session_id"),
    _text("principal"),
    _text("mode"),
    _text("outcome"),
    sa.Column("status", sa.Integer, nullable=False),
    _text("code", nullable=True),
    sa.Column("started_at", _TIME, nullable=False),
    sa.Column("duration_s", sa.Double, nullable=False),
    sa.Column("bytes_in", sa.BigInteger, nullable=False),
    sa.Column("bytes_out", sa.BigInteger, nullable=False),
    _text("trace_id"),
    sa.PrimaryKeyConstraint("id", "started_at", "instance_id"),
    sa.Index("ix_run_records_newest", "tenant", sa.text("started_at DESC"), sa.text("id DESC")),
    sa.Index("ix_run_records_agent", "tenant", "agent", sa.text("started_at DESC"), sa.text("id DESC")),
)

MODEL_RECORDS = sa.Table(
    "model_records",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    _text("run_id"),
    _text("tenant"),
    _text("agent"),
    _text("environment"),
    _text("instance_id"),
    _text("model"),
    _text("provider"),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("started_at", _TIME, nullable=False),
    sa.Column("duration_s", sa.Double, nullable=False),
    sa.Index("ix_model_records_run", "tenant", "run_id"),
)

SESSION_STATES = sa.Table(
    "session_states",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("agent", sa.Text, primary_key=True),
    sa.Column("environment", sa.Text, primary_key=True),
    sa.Column("session_id", sa.Text, primary_key=True),
    _text("state"),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("updated_at", _TIME, nullable=False),
)
