"""Sessions over the supervisor's unix socket, beside what `nexus.wire.node` describes.

`POST /sessions` `{"instances": [ids, best first], "session": id, "homes"?: [ids]}` → `{"instance", "address", "phase", "how"}`:
where the session lives, made when it lives nowhere; where it already lives wins over the order, and may be one of `homes`, where
it is never made. Problems: 404 `session.no_instance`, 429
`session.too_many`, 503 `session.not_started`.
`GET /sessions?instance=&tenant=&agent=&environment=` → `{"sessions": [status]}`.
`POST /sessions/{instance}/{session}/stop?grace_s=` (saved when it is to be kept, then ended), `/kill`, `/freeze`, `/thaw` → the
status; `POST /sessions:kill` `{"tenant", "agent", "environment"?}` → `{"killed": n}`.
`GET /sessions/{instance}/{session}/end?since=&wait_s=` → `{"problem": …}`: why its worker ended after that moment, null if not.
`POST /sessions/{instance}/{session}/exec` `{"command": [...], "timeout_s"?, "stdin"?}` → JSON lines
`{"stream": "stdout"|"stderr", "data"}`, at last `{"exit": n}`. A session id in a path is percent-encoded.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from nexus.core import sessions

_USED = frozenset(field.name for field in dataclasses.fields(sessions.SessionUsage))


def status_to_json(status: sessions.SessionStatus) -> dict[str, Any]:
    return dataclasses.asdict(status)


def status_from_json(value: Mapping[str, Any]) -> sessions.SessionStatus:
    """Raises TypeError, KeyError or ValueError on a value of another shape."""
    return sessions.SessionStatus(
        **{
            **value,
            "phase": sessions.SessionPhase(value["phase"]),
            "how": sessions.How(value["how"]) if value.get("how") else None,
            "usage": sessions.SessionUsage(**{name: used for name, used in value.get("usage", {}).items() if name in _USED}),
        }
    )


def place_to_json(place: sessions.SessionPlace) -> dict[str, Any]:
    return {"instance": place.instance_id, "address": place.address, "phase": place.phase, "how": place.how}


def place_from_json(value: Mapping[str, Any]) -> sessions.SessionPlace:
    """Raises KeyError or ValueError on a value of another shape."""
    return sessions.SessionPlace(
        instance_id=str(value["instance"]),
        address=str(value["address"]),
        phase=sessions.SessionPhase(value["phase"]),
        how=sessions.How(value["how"]),
    )
