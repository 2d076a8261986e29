"""Instance specs and statuses as JSON, between control and a node's supervisor.

The supervisor speaks HTTP on its unix socket: `GET /health`; `GET /capabilities`; `GET /instances` → `{"instances": [status]}`;
`PUT /instances/{id}` (a spec) → 202; `DELETE /instances/{id}?grace_s=` → 202; `GET /instances/{id}/log?lines=` → `{"lines": []}`;
`GET /instances/{id}/end?since=&wait_s=` → `{"problem": …}`, why it ended after that moment (null: it did not end);
`GET /instances/{id}/network?runs=a,b` → `{"total": {"sent", "received", "connections", "refused"}, "runs": {run: …},
"sessions": {session: …}}` of its way out (with `runs` of these alone);
`GET /usage?after=token` → `{"token", "rows": [row]}`, what sessions have used (`core.usage`) and was not told before the token,
which acknowledges what was; an unknown token is told everything;
`GET /events` → the present statuses, then one for every change, as JSON lines (a blank line every two seconds as a heartbeat);
`GET /logs?tenant&agent&…&follow` → `LogLine`s as JSON lines.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from nexus.core import instances, usage
from nexus.core.logs import LogLine as LogLine
from nexus.core.phases import InstancePhase


def spec_to_json(spec: instances.InstanceSpec) -> dict[str, Any]:
    """Includes token and secrets: only for the private socket."""
    fields = dataclasses.asdict(dataclasses.replace(spec, env=dict(spec.env), secrets=dict(spec.secrets)))
    return fields


def spec_from_json(value: Mapping[str, Any]) -> instances.InstanceSpec:
    """Raises TypeError or KeyError on a value of another shape."""
    return instances.InstanceSpec(**{**value, "health": instances.HealthCheck(**value.get("health", {}))})


def status_to_json(status: instances.InstanceStatus) -> dict[str, Any]:
    return dataclasses.asdict(status)


def usage_to_json(row: usage.UsageRow) -> dict[str, Any]:
    return dataclasses.asdict(row)


def usage_from_json(value: Mapping[str, Any]) -> usage.UsageRow:
    """Raises TypeError, KeyError or ValueError on a value of another shape."""
    return usage.UsageRow(**{**value, "part": usage.Part(value["part"])})


def status_from_json(value: Mapping[str, Any]) -> instances.InstanceStatus:
    return instances.InstanceStatus(
        **{**value, "phase": InstancePhase(value["phase"]), "usage": instances.Usage(**value.get("usage", {}))}
    )
