"""Tables of tasks, their events and webhooks, of finished runs and of session state. Times are seconds since the epoch.

JSON that comes from agents is kept as ASCII text: JSONB refuses `\\u0000` and lone surrogates, which agents may well send.
"""

import sqlalchemy as sa

from nexus.stores.postgres.metadata import METADATA

_TIME = sa.Double
_QUEUED = sa.text("phase = 'pending' AND NOT parked")
_PARKED = sa.text("phase = 'pending' AND parked")
_EXPIRING = sa.text("phase IN ('pending', 'waiting') AND expires_at IS NOT NULL")
_RUNNING = sa.text("phase = 'running'")
_KEYED = sa.text("idempotency_key IS NOT NULL")


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def _flag(name: str, *, default: str = "false") -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default=sa.text(default))


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
    _flag("cancel_requested"),
    _flag("parked"),
    _flag("paused"),
    _flag("dead"),
    _flag("asking"),
    _count("waits"),
    _text("replay_of", nullable=True),
    sa.Column("expires_at", _TIME),
    sa.Column("end_by", _TIME),
    sa.Column("run_timeout_s", sa.Double),
    _text("retry", nullable=True),
    _text("origin", nullable=True),
    sa.Column("share", sa.Text, nullable=False, server_default=sa.text("''")),
    sa.Column("progress", sa.Double),
    _text("message", nullable=True),
    _text("output", nullable=True),
    _text("metadata", nullable=True),
    _text("error", nullable=True),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("started_at", _TIME),
    sa.Column("finished_at", _TIME),
    sa.Index("ix_tasks_key", "tenant", "idempotency_key", unique=True, postgresql_where=_KEYED),
    sa.Index("ix_tasks_tenant_number", "tenant", sa.text("number DESC")),
    sa.Index(
        "ix_tasks_queue", "tenant", "agent", "environment", "share", sa.text("priority DESC"), "number", postgresql_where=_QUEUED
    ),
    sa.Index("ix_tasks_parked", "available_at", postgresql_where=_PARKED),
    sa.Index("ix_tasks_delayed", "deferred_at", postgresql_where=_PARKED),
    sa.Index("ix_tasks_expiring", "expires_at", postgresql_where=_EXPIRING),
    sa.Index("ix_tasks_dead", "tenant", sa.text("number DESC"), postgresql_where=sa.text("dead")),
    sa.Index("ix_tasks_finished", "finished_at", postgresql_where=sa.text("finished_at IS NOT NULL")),
    sa.Index("ix_tasks_running", "owner", postgresql_where=_RUNNING),
)

TASK_EVENTS = sa.Table(
    "task_events",
    METADATA,
    sa.Column("task_id", sa.Text, primary_key=True),  # no foreign key: checking it costs more than storing the event
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
    sa.Column("task_id", sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
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
    _text("ask_id", nullable=True),
    sa.Index("ix_webhook_deliveries_end", "task_id", unique=True, postgresql_where=sa.text("ask_id IS NULL")),
    sa.Index("ix_webhook_deliveries_ask", "task_id", "ask_id", unique=True, postgresql_where=sa.text("ask_id IS NOT NULL")),
    sa.Index("ix_webhook_deliveries_due", "host", "next_at", postgresql_where=sa.text("status = 'pending'")),
)

WEBHOOK_KEYS = sa.Table(
    "webhook_keys",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("rotated_at", _TIME, nullable=False),
)

TASK_LANES = sa.Table(
    "task_lanes",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("agent", sa.Text, primary_key=True),
    sa.Column("environment", sa.Text, primary_key=True),
    sa.Column("share", sa.Text, primary_key=True, server_default=sa.text("''")),
    sa.Column("concurrency", sa.Integer, nullable=False),
)

TASK_SCHEDULES = sa.Table(
    "task_schedules",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    _text("tenant"),
    _text("agent"),
    _text("environment"),
    _text("name"),
    _text("principal"),
    _text("cron", nullable=True),
    _text("timezone"),
    _text("catch_up"),
    sa.Column("template", sa.LargeBinary, nullable=False),
    _flag("active", default="true"),
    sa.Column("next_at", _TIME),
    sa.Column("last_at", _TIME),
    _text("last_task_id", nullable=True),
    _count("fired"),
    _count("missed"),
    sa.Column("created_at", _TIME, nullable=False),
    sa.UniqueConstraint("tenant", "name"),
    sa.Index("ix_task_schedules_due", "next_at", postgresql_where=sa.text("active AND next_at IS NOT NULL")),
)

RUN_STEPS = sa.Table(
    "run_steps",
    METADATA,
    sa.Column("task_id", sa.ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    _text("kind"),
    _text("status"),
    sa.Column("attempt", sa.Integer, nullable=False),
    _text("head", nullable=True),
    sa.Column("body", sa.LargeBinary),
    sa.Column("request", sa.LargeBinary),
    sa.Column("sent_at", _TIME, nullable=False),
    sa.Column("done_at", _TIME),
)

TASK_ASKS = sa.Table(
    "task_asks",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("task_id", sa.ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    _text("tenant"),
    _text("key"),
    _text("question"),
    _text("shape"),
    _text("status"),
    _text("answer", nullable=True),
    _text("answered_by", nullable=True),
    sa.Column("opened_at", _TIME, nullable=False),
    sa.Column("expires_at", _TIME),
    sa.Column("answered_at", _TIME),
    _flag("told"),
    _flag("used"),
    sa.UniqueConstraint("task_id", "key"),
    sa.Index("ix_task_asks_open", "tenant", "opened_at", postgresql_where=sa.text("status = 'open'")),
    sa.Index("ix_task_asks_expiring", "expires_at", postgresql_where=sa.text("status = 'open' AND expires_at IS NOT NULL")),
)

TASK_TRIGGERS = sa.Table(
    "task_triggers",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    _text("tenant"),
    _text("agent"),
    _text("environment"),
    _text("name"),
    _text("kind"),
    _text("principal"),
    _text("settings"),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("template", sa.LargeBinary, nullable=False),
    _flag("active", default="true"),
    _count("taken", kind=sa.BigInteger),
    _count("refused", kind=sa.BigInteger),
    sa.Column("last_at", _TIME),
    _text("last_task_id", nullable=True),
    _text("problem", nullable=True),
    sa.Column("created_at", _TIME, nullable=False),
    sa.UniqueConstraint("tenant", "name"),
)

TASK_REPLIES = sa.Table(
    "task_replies",
    METADATA,
    sa.Column("task_id", sa.ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("trigger_id", sa.ForeignKey("task_triggers.id", ondelete="CASCADE"), nullable=False),
    _text("topic"),
    _text("correlation"),
    sa.Index("ix_task_replies_trigger", "trigger_id"),
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
    sa.Column("cpu_s", sa.Double),
    sa.Column("network_in", sa.BigInteger),
    sa.Column("network_out", sa.BigInteger),
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
    _text("session_id", nullable=True),
    _text("user_id", nullable=True),
    _text("principal", nullable=True),
    _text("requested", nullable=True),
    sa.Column("cached_tokens", sa.BigInteger),
    sa.Column("cost_nano", sa.BigInteger),
    sa.Column("attempts", sa.Integer),
    sa.Column("estimated", sa.Boolean),
    sa.Column("cached", sa.Boolean),
    _text("outcome", nullable=True),
    sa.Index("ix_model_records_run", "tenant", "run_id"),
    sa.Index("ix_model_records_time", "tenant", "started_at"),
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
