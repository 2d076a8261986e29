"""Where sessions with a worker of their own live: one look-up for a known one, one question to the supervisor for a new one."""

import asyncio
import collections
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nexus.core import errors
from nexus.gateway import routes
from nexus.kit import http_client, http_kept, session_tokens
from nexus.wire import problem

_MOST_KNOWN = 50_000
_MOST_BYTES = 64 * 1024
_ANSWER_S = 90.0


@dataclass(frozen=True, slots=True)
class Place:
    """The instance that a session belongs to, and the address (`unix:/path`) where its own worker listens."""

    instance_id: str
    address: str


Key = tuple[str, str]
"""A deployment's id and a session's."""


class Places:
    """The sessions that this process has sent runs to lately; the longest unused are forgotten first."""

    def __init__(self, *, most: int = _MOST_KNOWN) -> None:
        self._known: collections.OrderedDict[Key, Place] = collections.OrderedDict()
        self._asked: dict[Key, asyncio.Future[Place]] = {}
        self._lines: dict[Path, http_kept.Kept] = {}
        self._most = most

    def find(self, key: Key) -> Place | None:
        place = self._known.get(key)
        if place is not None:
            self._known.move_to_end(key)
        return place

    def forget(self, key: Key) -> None:
        self._known.pop(key, None)

    async def ask(self, supervisor: Path, key: Key, instances: Sequence[str], homes: Sequence[str] = ()) -> Place:
        """The session's place, made when it has none; whoever asks meanwhile for the same one waits for the same answer.

        `instances`: those it may live on, best first; `homes`: those where it may only live already. Raises what the supervisor
        answers, or `Unavailable`
        (`session.no_supervisor`).
        """
        if (known := self._known.get(key)) is not None:
            return known  # another run's question was answered while this one was on its way here
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = asyncio.ensure_future(fetch_place(self._line(supervisor), key[1], instances, homes))
            asked.add_done_callback(lambda done: self._note(key, done))
        return await asyncio.shield(asked)

    def _line(self, supervisor: Path) -> http_kept.Kept:
        line = self._lines.get(supervisor)
        if line is None:
            line = self._lines[supervisor] = http_kept.Kept(str(supervisor))
        return line

    def _note(self, key: Key, done: "asyncio.Future[Place]") -> None:
        self._asked.pop(key, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._known[key] = done.result()
        self._known.move_to_end(key)
        while len(self._known) > self._most:
            self._known.popitem(last=False)


async def fetch_place(supervisor: http_kept.Kept, session_id: str, instances: Sequence[str], homes: Sequence[str] = ()) -> Place:
    """Ask the supervisor of this node (`POST /sessions`)."""
    asked = {"instances": list(instances), "session": session_id} | ({"homes": list(homes)} if homes else {})
    try:
        answer = await _post(supervisor, json.dumps(asked).encode())
        told = json.loads(answer.body)
    except (OSError, TimeoutError, http_client.ProtocolError, ValueError) as error:
        raise errors.Unavailable(
            "the node cannot be asked for a session's worker",
            code="session.no_supervisor",
            phase="route",
            cause=str(error) or type(error).__name__,
            retry_after_s=1,
            next_step="try again in a second; `nexus status` shows whether the supervisor runs",
        ) from error
    if answer.status != 200:
        raise problem.parse(told if isinstance(told, dict) else {})
    try:
        place = Place(str(told["instance"]), str(told["address"]))
        routes.parse_address(place.address)
    except (KeyError, TypeError, ValueError) as error:
        raise errors.Internal("the supervisor's answer is not a place", code="session.no_supervisor") from error
    return place


async def _post(supervisor: http_kept.Kept, body: bytes) -> http_client.Answer:
    """A place that was made is found when it is asked for again, so that a connection that ended meanwhile is no failure."""
    headers = {"Content-Type": "application/json"}
    try:
        return await supervisor.request("POST", "/sessions", headers=headers, body=body, timeout_s=_ANSWER_S, limit=_MOST_BYTES)
    except ConnectionResetError:
        return await supervisor.request("POST", "/sessions", headers=headers, body=body, timeout_s=_ANSWER_S, limit=_MOST_BYTES)


def plan_order(deployment: routes.Deployment, first: routes.Instance | None, tried: Collection[str]) -> list[str]:
    """The instances that a session may live on: the one that was chosen, then the others that were not tried in vain. Where
    versions share the traffic, one was asked for by name, or the session began on one that was replaced, only those of the chosen
    one's version."""
    siblings = deployment.draining.get(first.version, ()) if first is not None else ()
    listed = siblings if first in siblings else deployment.instances
    others = [each for each in listed if each is not first and each.id not in tried]
    if first is None:
        return [each.id for each in others]
    if deployment.options.split is not None or first not in deployment.instances:
        others = [each for each in others if each.version == first.version]
    return [first.id, *(each.id for each in others)]


def find_homes(deployment: routes.Deployment, order: Collection[str]) -> list[str]:
    """Instances of replaced versions where a session may live that nobody remembers: the supervisor knows."""
    return [each.id for row in deployment.draining.values() for each in row if each.id not in order]


def moved(agent: str) -> errors.Unavailable:
    return errors.Unavailable(
        f"the session's instance of {agent} is being replaced",
        code="agent.not_ready",
        retry_after_s=1,
        next_step="try again in a second",
    )


def find_caller(credential: str, table: routes.RouteTable, *, now: float) -> routes.Caller | None:
    """The instance whose session's worker holds this token, narrowed to the session; None when it is not such a token."""
    claims = session_tokens.parse(credential)
    token_hash = table.token_hashes.get(claims.instance_id) if claims is not None else None
    if claims is None or token_hash is None or not session_tokens.verify(credential, token_hash, now=now):
        return None
    return replace(table.tokens[token_hash], session_id=claims.session_id)
