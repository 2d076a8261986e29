"""What operations share: the paths, headers and bodies they are made of. Pure."""

from typing import Any
from urllib.parse import quote

from nexus.core import errors, names
from nexus.wire import headers


def given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def agent(name: str, verb: str) -> str:
    return f"/agents/{names.parse_label(name)}/{verb}"


def v1(name: str, *rest: str) -> str:
    return "/".join(("/v1/agents", names.parse_label(name), *(quote(part, safe="") for part in rest)))


def task(task_id: str) -> str:
    if not task_id or task_id in (".", ".."):
        raise errors.Invalid(f"{task_id!r} is not a task id", code="task.invalid_id", next_step="nexus ai agent task list")
    return f"/tasks/{quote(task_id, safe='')}"


def run_headers(session_id: str | None, environment: str | None) -> dict[str, str]:
    sent: dict[str, str] = {}
    if session_id is not None:
        if not names.is_session_id(session_id):
            raise errors.Invalid(
                f"{session_id[:80]!r} is not a session id",
                code="session.invalid_id",
                cause="a session id is 1 to 256 of A-Z, a-z, 0-9 and . _ : @ -",
                next_step="choose such an id",
            )
        sent[headers.SESSION_ID] = session_id
    if environment is not None:
        sent[headers.ENVIRONMENT] = names.parse_label(environment, "environment")
    return sent


def header_text(value: str, what: str) -> str:
    if not (value.isascii() and value.isprintable() and 0 < len(value) <= 255):
        raise errors.Invalid(
            f"the {what} is not 1 to 255 printable ASCII characters", code="request.invalid", next_step="choose another"
        )
    return value
