"""Errors on the wire: `application/problem+json` (RFC 9457) with our stable code, phase, cause and next step.

Faces call `render`; clients call `parse`. The status of a kind stands here and nowhere else.
"""

import json
from collections.abc import Mapping
from typing import Any

from nexus.core import errors

CONTENT_TYPE = "application/problem+json"
_STATUS = {
    "invalid": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "exhausted": 429,
    "agent_failed": 500,
    "unavailable": 503,
    "internal": 500,
}
_STATUS_OF_CODE = {
    "body.coding_unsupported": 415,
    "body.too_large": 413,
    "headers.too_large": 431,
    "host.refused": 421,
    "method.not_allowed": 405,
    "request.timeout": 408,
    "run.timeout": 504,
    "run.memory": 500,
    "run.disk": 500,
    "run.processes": 500,
    "instance.exited": 502,
    "session.exited": 502,
    "instance.out_of_memory": 502,
    "instance.out_of_disk": 502,
    "instance.out_of_processes": 502,
    "health.failing": 502,
    "agent.bad_response": 502,
    "agent.connection_lost": 502,
    "control.timeout": 504,
    "idempotency.mismatch": 422,
    "model.credential_refused": 502,
    "model.timeout": 504,
    "budget.exhausted": 402,
    "upgrade.required": 426,
    "upgrade.unsupported": 501,
    "upstream.failed": 502,
    "state.too_large": 413,
}


def status_of(error: errors.NexusError) -> int:
    return _STATUS_OF_CODE.get(error.code, _STATUS[error.kind])


def render(error: errors.NexusError, *, run_id: str | None = None) -> dict[str, Any]:
    """The problem object: `type`, `title`, `status`, `detail`, `code`, `kind` and what else is known."""
    problem: dict[str, Any] = {
        "type": f"urn:nexus:problem:{error.code}",
        "title": error.code.replace(".", " ").replace("_", " "),
        "status": status_of(error),
        "detail": error.message,
        "code": error.code,
        "kind": error.kind,
    }
    optional = {
        "phase": error.phase,
        "cause": error.cause,
        "next_step": error.next_step,
        "log_tail": list(error.log_tail),
        "retry_after_s": error.retry_after_s,
        "run_id": run_id,
    }
    problem.update((name, value) for name, value in optional.items() if value)
    problem.update((name, value) for name, value in error.extra.items() if name not in problem)
    return problem


def encode(error: errors.NexusError, *, run_id: str | None = None) -> bytes:
    return json.dumps(render(error, run_id=run_id), ensure_ascii=True).encode()


def parse(problem: Mapping[str, Any]) -> errors.NexusError:
    """The error a problem object stands for; an unknown kind becomes `Internal`."""
    kind = errors.KINDS.get(str(problem.get("kind", "")), errors.Internal)
    known = {
        "type", "title", "status", "detail", "code", "kind", "phase", "cause", "next_step", "log_tail", "retry_after_s"
    }  # fmt: skip
    retry_after = problem.get("retry_after_s")
    return kind(
        str(problem.get("detail") or problem.get("title") or "the server gave no detail"),
        code=str(problem.get("code") or kind.default_code),
        phase=_text(problem.get("phase")),
        cause=_text(problem.get("cause")),
        next_step=_text(problem.get("next_step")),
        log_tail=[str(line) for line in problem.get("log_tail") or ()],
        retry_after_s=float(retry_after) if isinstance(retry_after, int | float) else None,
        extra={name: value for name, value in problem.items() if name not in known},
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
