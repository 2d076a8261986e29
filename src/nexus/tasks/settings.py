"""What can be set about tasks and webhooks; the composition root fills it in."""

from dataclasses import dataclass

from nexus.kit import backoff
from nexus.ports import task_store

_RETRY = backoff.Backoff(first_s=1.0, longest_s=30.0, least_s=0.2)
_DEFER = backoff.Backoff(first_s=0.2, longest_s=3.0, least_s=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """Times in seconds. `lease_s`: how long an owner may be silent; `orphan_s`: the same once its connection is gone.

    `keep_…`: how long after its end a task is kept, and its chatty events (pieces of text, progress); those go sooner while the
    event log is larger than `most_log_bytes`.
    """

    concurrency: int = 128
    per_lane: int = 64
    per_tenant: int = 1000
    max_pending: int = 100_000
    max_attempts: int = 3
    most_attempts: int = 50
    beat_s: float = 1.0
    lease_s: float = 15.0
    orphan_s: float = 1.0
    poll_s: float = 1.0
    run_timeout_s: float = 8 * 3600.0 + 300.0
    connect_timeout_s: float = 5.0
    max_event_bytes: int = 16 * 1024 * 1024
    retry: backoff.Backoff = _RETRY
    defer: backoff.Backoff = _DEFER
    keep_completed_s: float = 7 * 86400.0
    keep_failed_s: float = 30 * 86400.0
    keep_chatty_s: float = 86400.0
    most_log_bytes: int = 4 * 1024**3
    sweep_s: float = 60.0
    sweep_batch: int = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPolicy:
    """What an agent's own configuration (`hosting.tasks`) says; None: as the host does. `per_key`: tasks of one API key that run
    at once."""

    max_attempts: int | None = None
    retry: task_store.Retry | None = None
    concurrency: int | None = None
    per_key: int | None = None
    max_pending: int | None = None
    queue_timeout_s: float | None = None
    run_timeout_s: float | None = None
    total_timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """`schedule_s`: the pause after each failed attempt; after the last one the delivery is dead. About four days in all.

    `concurrency`: calls at once that have taken less than `slow_after_s`; `slow`: those that take longer, or call an endpoint
    that is ailing.
    """

    schedule_s: tuple[float, ...] = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 43200, 57600, 86400, 86400)
    timeout_s: float = 15.0
    concurrency: int = 256
    slow: int = 2048
    slow_after_s: float = 0.5
    per_host: int = 4
    max_answer_bytes: int = 16 * 1024
    poll_s: float = 1.0
