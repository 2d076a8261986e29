"""Tasks as the API, webhooks and clients see them. Pure."""

import json
from typing import Any

from nexus.ports import ask_store, task_store
from nexus.wire import views


def render_task(task: task_store.Task) -> views.TaskView:
    return views.TaskView(
        task_id=task.id,
        status=str(task.phase),
        agent=task.lane.agent,
        environment=task.lane.environment,
        progress=task.progress,
        message=task.message,
        attempt=task.attempt,
        output=_value(task.output),
        metadata=_value(task.metadata) or {},
        error=_value(task.error),
        session_id=task.session_id,
        created_at=task.created_at,
        started_at=task.started_at,
        finished_at=task.finished_at,
        webhook=render_webhook(task),
        priority=task.priority,
        run_at=task.run_at,
        end_by=task.end_by,
        paused=task.paused,
        dead=task.dead,
        origin=task.origin,
        asking=task.asking,
        replay_of=task.replay_of,
    )


def render_ask(ask: ask_store.Ask, *, url: str | None = None) -> views.AskView:
    shape = _value(ask.shape)
    return views.AskView(
        ask_id=ask.id,
        task_id=ask.task_id,
        agent=ask.lane.agent,
        environment=ask.lane.environment,
        question=ask.text,
        choices=shape.get("choices"),
        answer_schema=shape.get("schema"),
        status=ask.status,
        answer=_value(ask.answer),
        answered_by=ask.answered_by,
        opened_at=ask.opened_at,
        expires_at=ask.expires_at,
        answered_at=ask.answered_at,
        url=url,
    )


def render_webhook(task: task_store.Task) -> dict[str, Any] | None:
    """`status`: waiting (the task is not finished), pending, delivered or dead."""
    if task.webhook_url is None:
        return None
    delivery = task.delivery or task_store.Delivery(status="waiting", attempts=0)
    return {
        "url": task.webhook_url,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "last_error": delivery.last_error,
        "last_status": delivery.last_status,
    }


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)
