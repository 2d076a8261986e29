"""The part of the supervisor's HTTP protocol that is about sessions (`nexus.wire.session_node`): parse, call one verb, render."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import unquote

from nexus.core import errors, names
from nexus.drivers.process import session, session_exec, session_table
from nexus.wire import session_node as wire

_ONE = re.compile(r"/sessions/([^/]{1,100})/([^/]{1,800})/(stop|kill|freeze|thaw|exec|end)")
_LOOK_S = 0.02
_MOST_INSTANCES = 10_000
_MOST_ARGUMENTS = 1000
_EXEC_S, _LONGEST_EXEC_S = 60.0, 3600.0


class SessionApi:
    """`answer` gives a JSON value, or a stream of them; None when the path is none of ours."""

    def __init__(self, table: session_table.Table) -> None:
        self._table = table

    async def answer(
        self, method: str, path: str, query: Mapping[str, str], body: bytes
    ) -> dict[str, Any] | AsyncGenerator[dict[str, Any], None] | None:
        if path == "/sessions" and method == "POST":
            asked = _object(body)
            instances, homes = _ids(asked, "instances"), _ids(asked, "homes")
            return wire.place_to_json(await self._table.place(instances, str(asked.get("session", "")), homes=homes))
        if path == "/sessions" and method == "GET":
            keys = ("instance", "tenant", "agent", "environment")
            found = await self._table.statuses(**{name: query.get(name) for name in keys})
            return {"sessions": [wire.status_to_json(one) for one in found]}
        if path == "/sessions:kill" and method == "POST":
            return {"killed": await self._kill_all(_object(body))}
        if path == "/sessions:forget" and method == "POST":
            return {"killed": await self._forget(_object(body))}
        match = _ONE.fullmatch(path)
        if match is None:
            return None
        instance_id, session_id, verb = match[1], unquote(match[2]), match[3]
        if verb == "end" and method == "GET":
            return {"problem": await self._end(instance_id, session_id, query)}
        return await self._verb(self._table.get(instance_id, session_id), verb, query, body) if method == "POST" else None

    async def _end(self, instance_id: str, session_id: str, query: Mapping[str, str]) -> Any:
        """Why its worker ended after `since`; a connection may break before its end is heard of, so that is waited for."""
        since, wait_s = float(query.get("since") or 0.0), min(_seconds(query.get("wait_s"), 0.0), 5.0)
        for _ in range(int(wait_s / _LOOK_S) + 1):
            if (told := self._table.last_end(instance_id, session_id, since=since)) is not None:
                return told
            await asyncio.sleep(_LOOK_S)
        return None

    async def _kill_all(self, asked: Mapping[str, Any]) -> int:
        tenant, agent, environment = (asked.get(name) for name in ("tenant", "agent", "environment"))
        if not isinstance(tenant, str) or not isinstance(agent, str) or not tenant or not agent:
            raise _bad("tenant and agent are needed")
        return await self._table.kill_all(tenant=tenant, agent=agent, environment=environment)

    async def _forget(self, asked: Mapping[str, Any]) -> int:
        tenant, agent, environment = (names.parse_label(str(asked.get(name))) for name in ("tenant", "agent", "environment"))
        session_id = asked.get("session")
        if session_id is not None and not names.is_session_id(session_id):
            raise _bad("session is a session's id")
        return await self._table.forget(tenant=tenant, agent=agent, environment=environment, session_id=session_id)

    async def _verb(
        self, one: session.Session, verb: str, query: Mapping[str, str], body: bytes
    ) -> dict[str, Any] | AsyncGenerator[dict[str, Any], None]:
        if verb == "exec":
            return _exec(one, _object(body))
        if verb == "stop":
            await one.stop(grace_s=_seconds(query.get("grace_s"), 10.0))
        elif verb == "kill":
            await one.kill()
        elif verb == "freeze":
            await one.freeze(_is_alone)
        else:
            await one.thaw()
        return wire.status_to_json(one.status())


async def _is_alone() -> bool:
    """Frozen because somebody wants it, whoever is connected."""
    return False


def _exec(one: session.Session, asked: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    command, stdin = asked.get("command"), asked.get("stdin")
    plain = isinstance(command, list) and all(isinstance(word, str) and "\0" not in word for word in command)
    if not isinstance(command, list) or not plain or not 1 <= len(command) <= _MOST_ARGUMENTS:
        raise _bad("command is a list of words")
    given = stdin.encode() if isinstance(stdin, str) else b""
    return session_exec.run(one, command, given, timeout_s=_seconds(asked.get("timeout_s"), _EXEC_S))


def _ids(asked: Mapping[str, Any], name: str) -> list[str]:
    listed = asked.get(name, [] if name == "homes" else None)
    if not isinstance(listed, list) or len(listed) > _MOST_INSTANCES or not all(isinstance(one, str) for one in listed):
        raise _bad(f"{name} is a list of ids")
    return listed


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _bad("the body is a JSON object")
    return value


def _seconds(value: object, default: float) -> float:
    try:
        seconds = float(value) if value not in (None, "") else default  # type: ignore[arg-type]
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST_EXEC_S:
        raise _bad(f"a number of seconds from 0 to {_LONGEST_EXEC_S:g} is needed")
    return seconds


def _bad(cause: str) -> errors.Invalid:
    return errors.Invalid("the supervisor cannot read this", code="request.invalid", cause=cause)
