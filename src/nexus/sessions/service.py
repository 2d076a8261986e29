"""Verbs on sessions: what the node knows of their workers, joined with what their runs left behind.

A session without a worker of its own (`isolation: instance`, or one that ended) is known by its runs alone.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexus.core import errors, ids, names, sessions
from nexus.core.principals import Action, Principal
from nexus.ports import session_history, session_node
from nexus.sessions import accounting
from nexus.wire import views


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """Ids of ready instances: those that take `new` sessions, and those of replaced versions where one may live (`homes`)."""

    new: Sequence[str]
    homes: Sequence[str] = ()


InstancesOf = Callable[[str, str, str | None], Awaitable[Instances]]
"""Tenant, agent and environment (None: the only one) to its ready instances."""
Forget = Callable[[str, str, str, str], Awaitable[bool]]
"""Tenant, agent, environment and session: forget what it kept in memory and state; whether there was any."""
_LONGEST_GRACE_S = 3600.0
_LONGEST_EXEC_S = 3600.0
_MOST_WORDS = 256
_MOST_BYTES = 128 * 1024


class SessionService:
    def __init__(
        self,
        *,
        node: session_node.SessionNode,
        history: session_history.SessionHistory,
        instances_of: InstancesOf,
        forget: Forget,
        used: accounting.Accounting,
    ) -> None:
        self._node, self._history, self._instances_of, self._forget = node, history, instances_of, forget
        self._used = used

    async def list(
        self, caller: Principal, *, agent: str | None, environment: str | None, limit: int
    ) -> Sequence[views.SessionView]:
        """Those with a worker first, then the rest by when they ran last."""
        caller.require(Action.READ, agent=agent)
        environment = _narrow(caller, environment)
        agents = None if agent is None and caller.agents is None else {agent} if agent is not None else set(caller.agents or ())
        query = session_node.SessionQuery(tenant=caller.tenant, agent=agent, environment=environment)
        alive = [one for one in await self._node.sessions(query) if agents is None or one.agent in agents]
        past = await self._history.recent(caller.tenant, agents=agents, environment=environment, session_id=None, limit=limit)
        known = {_key(one): one for one in past}
        shown = [(_render(one, known.pop(_key(one), None)), one) for one in sorted(alive, key=_newest)]
        every = [*shown, *((_render_past(one), None) for one in known.values())][:limit]
        used = await self._used.of(caller.tenant, {view.session_id for view, _ in every})
        return [accounting.show(view, used.get(_key(view), ()), one) for view, one in every]

    async def show(self, caller: Principal, agent: str, session_id: str, environment: str | None) -> views.SessionView:
        """`NotFound` (`session.not_found`) when there is neither a worker nor a run of it."""
        caller.require(Action.READ, agent=agent)
        environment = _narrow(caller, environment)
        status = await self._find(caller.tenant, agent, session_id, environment)
        past = await self._history.recent(
            caller.tenant, agents={agent}, environment=environment, session_id=_checked(session_id), limit=1
        )
        used = await self._used.of(caller.tenant, [session_id], fresh=True)
        if status is not None:
            return accounting.show(_render(status, past[0] if past else None), used.get(_key(status), ()), status)
        if not past:
            raise _not_found(agent, session_id)
        return accounting.show(_render_past(past[0]), used.get(_key(past[0]), ()), None)

    async def open(self, caller: Principal, agent: str, session_id: str | None, environment: str | None) -> views.SessionView:
        """Give a session its worker before its first run. Raises what the node answers when there is no room."""
        caller.require(Action.RUN, agent=agent)
        environment = _narrow(caller, environment)
        wanted = _checked(session_id) if session_id is not None else ids.new_id(ids.SESSION)
        instances = await self._instances_of(caller.tenant, agent, environment)
        if not instances.new:
            raise errors.Unavailable(
                f"no instance of {agent} is ready",
                code="agent.not_ready",
                next_step=f"see `nexus ai agent show {agent}`",
                retry_after_s=1.0,
            )
        await self._node.place(instances.new, wanted, homes=instances.homes)
        status = await self._find(caller.tenant, agent, wanted, environment)
        if status is None:
            raise errors.Unavailable(f"session {wanted} ended at once", code="session.ended", next_step="open it again")
        return _render(status, None)

    async def stop(
        self, caller: Principal, agent: str, session_id: str, environment: str | None, *, grace_s: float
    ) -> views.SessionView:
        """Let its runs end for at most `grace_s`, keep what is to be kept, end the worker. The next run makes a new one."""
        status = await self._worker_of(caller, agent, session_id, environment)
        grace_s = max(0.0, min(grace_s, _LONGEST_GRACE_S))
        return _render(await self._node.stop_session(status.instance_id, status.session_id, grace_s=grace_s), None)

    async def kill(self, caller: Principal, agent: str, session_id: str, environment: str | None) -> views.SessionView:
        """End the worker and everything in its box now; runs in it fail."""
        status = await self._worker_of(caller, agent, session_id, environment)
        return _render(await self._node.kill_session(status.instance_id, status.session_id), None)

    async def delete(self, caller: Principal, agent: str, session_id: str, environment: str) -> None:
        """End the session for good, with all that was kept of it: work directory, state, graph memory. Its runs' records stay.

        `NotFound` (`session.not_found`) when there was neither a worker nor a run nor anything kept.
        """
        caller.require(Action.DEPLOY, agent=agent)
        _narrow(caller, environment)
        had_worker = await self._node.forget_sessions(
            tenant=caller.tenant, agent=agent, environment=environment, session_id=_checked(session_id)
        )
        had_memory = await self._forget(caller.tenant, agent, environment, session_id)
        if had_worker or had_memory:
            return
        past = await self._history.recent(caller.tenant, agents={agent}, environment=environment, session_id=session_id, limit=1)
        if not past:
            raise _not_found(agent, session_id)

    async def kill_all(self, caller: Principal, agent: str, environment: str | None) -> int:
        """The emergency brake: every session of the agent that has a worker. How many there were."""
        caller.require(Action.DEPLOY, agent=agent)
        query = session_node.SessionQuery(tenant=caller.tenant, agent=agent, environment=_narrow(caller, environment))
        return await self._node.kill_sessions(query)

    async def exec(
        self,
        caller: Principal,
        agent: str,
        session_id: str,
        environment: str | None,
        command: Sequence[str],
        *,
        stdin: str | None,
        timeout_s: float,
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Run a command in the session's box, with its rights and limits; its output as it comes, at last its exit code."""
        if not command or len(command) > _MOST_WORDS or sum(len(word) for word in command) > _MOST_BYTES:
            raise errors.Invalid("a command has 1 to 256 words", code="session.command_invalid", next_step="shorten it")
        if any("\0" in word for word in command):
            raise errors.Invalid("a command cannot hold a NUL character", code="session.command_invalid")
        status = await self._worker_of(caller, agent, session_id, environment)
        timeout_s = max(0.1, min(timeout_s, _LONGEST_EXEC_S))
        return self._node.exec(status.instance_id, status.session_id, command, stdin=stdin, timeout_s=timeout_s)

    async def _worker_of(self, caller: Principal, agent: str, session_id: str, environment: str | None) -> sessions.SessionStatus:
        caller.require(Action.DEPLOY, agent=agent)
        status = await self._find(caller.tenant, agent, session_id, _narrow(caller, environment))
        if status is None:
            raise _not_found(agent, session_id)
        return status

    async def _find(self, tenant: str, agent: str, session_id: str, environment: str | None) -> sessions.SessionStatus | None:
        """The session that has, or had last, a worker. `Invalid` (`environment.required`) when there are several."""
        wanted = _checked(session_id)
        query = session_node.SessionQuery(tenant=tenant, agent=agent, environment=environment)
        found = [one for one in await self._node.sessions(query) if one.session_id == wanted]
        alive = [one for one in found if one.phase is not sessions.SessionPhase.ENDED] or found[-1:]
        if len({one.environment for one in alive}) > 1:
            places = ", ".join(sorted({one.environment for one in alive}))
            raise errors.Invalid(
                f"session {session_id} is alive in several environments",
                code="environment.required",
                cause=f"it is in {places}",
                next_step="name one with --env",
            )
        return alive[0] if alive else None


def _narrow(caller: Principal, environment: str | None) -> str | None:
    """The environment that is meant; a key for one environment sees no other."""
    if caller.environment is not None and environment not in (None, caller.environment):
        raise errors.Forbidden(
            f"key {caller.id} is for the environment {caller.environment} only",
            next_step=f"leave --env out, or use a key for {environment}",
        )
    return environment or caller.environment


def _checked(session_id: str) -> str:
    if not names.is_session_id(session_id) or session_id in (".", ".."):
        raise errors.Invalid(
            "this is not a session id",
            code="session.invalid",
            cause="a session id is 1 to 256 of A-Z a-z 0-9 . _ : @ -",
            next_step="see them with: nexus ai agent sessions list",
        )
    return session_id


def _not_found(agent: str, session_id: str) -> errors.NotFound:
    return errors.NotFound(
        f"agent {agent} has no session {session_id!r}",
        code="session.not_found",
        next_step=f"see them with: nexus ai agent sessions list {agent}",
    )


def _key(one: sessions.SessionStatus | session_history.SessionPast | views.SessionView) -> tuple[str, str, str]:
    return one.agent, one.environment, one.session_id


def _newest(one: sessions.SessionStatus) -> float:
    return -max(one.last_active_at, one.created_at)


def _render(status: sessions.SessionStatus, past: session_history.SessionPast | None) -> views.SessionView:
    usage = status.usage
    return views.SessionView(
        session_id=status.session_id,
        agent=status.agent,
        environment=status.environment,
        version=status.version,
        isolation="session",
        phase=status.phase.value,
        how=status.how.value if status.how is not None else None,
        instance_id=status.instance_id,
        pid=status.pid,
        created_at=status.created_at,
        last_active_at=max(status.last_active_at, past.last_at if past is not None else 0.0),
        expires_at=status.expires_at or None,
        runs=max(usage.runs, past.runs if past is not None else 0),
        failed=past.failed if past is not None else 0,
        busy_s=past.busy_s if past is not None else 0.0,
        cpu_s=usage.cpu_s,
        memory_bytes=usage.memory_bytes,
        memory_byte_seconds=usage.memory_byte_seconds,
        bytes_in=past.bytes_in if past is not None else 0,
        bytes_out=past.bytes_out if past is not None else 0,
        problem=dict(status.problem) if status.problem is not None else None,
    )


def _render_past(past: session_history.SessionPast) -> views.SessionView:
    return views.SessionView(
        session_id=past.session_id,
        agent=past.agent,
        environment=past.environment,
        version=past.version,
        isolation=None,
        phase="past",
        created_at=past.first_at,
        last_active_at=past.last_at,
        runs=past.runs,
        failed=past.failed,
        busy_s=past.busy_s,
        bytes_in=past.bytes_in,
        bytes_out=past.bytes_out,
    )
