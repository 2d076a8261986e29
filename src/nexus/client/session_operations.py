"""Operations on sessions; see `operations`."""

from collections.abc import Sequence

from nexus.client import answers, feeds, paths
from nexus.client.calls import Call, Operation, ask


def list_sessions(
    agent: str | None = None, *, environment: str | None = None, limit: int | None = None
) -> Operation[list[answers.Answer]]:
    """Sessions with a worker of their own first, then the others by when they ran last."""
    path = "/v1/sessions" if agent is None else paths.v1(agent, "sessions")
    reply = yield from ask(Call(method="GET", path=path, query={"environment": environment, "limit": limit}))
    return [answers.Answer(entry) for entry in reply.items()]


def show_session(agent: str, session_id: str, *, environment: str | None = None) -> Operation[answers.Answer]:
    reply = yield from ask(_call("GET", agent, session_id, environment=environment))
    return answers.Answer(reply.object())


def open_session(agent: str, session_id: str | None = None, *, environment: str | None = None) -> Operation[answers.Answer]:
    """Give a session its worker before its first run; without an id one is made."""
    body = paths.given(session_id=session_id, environment=environment)
    reply = yield from ask(Call(method="POST", path=paths.v1(agent, "sessions"), json=body, patient=True))
    return answers.Answer(reply.object())


def stop_session(
    agent: str, session_id: str, *, environment: str | None = None, grace: float | None = None
) -> Operation[answers.Answer]:
    """End its worker after the runs in hand (at most `grace` seconds); what is to be kept is kept."""
    query = {"environment": environment, "grace_s": None if grace is None else str(grace)}
    call = Call(method="POST", path=paths.v1(agent, "sessions", session_id, "stop"), query=query, patient=True)
    reply = yield from ask(call)
    return answers.Answer(reply.object())


def kill_session(agent: str, session_id: str, *, environment: str | None = None) -> Operation[answers.Answer]:
    """End its worker and everything in its box at once."""
    reply = yield from ask(_call("POST", agent, session_id, "kill", environment=environment))
    return answers.Answer(reply.object())


def delete_session(agent: str, session_id: str, *, environment: str | None = None) -> Operation[None]:
    """End it for good, with all that was kept of it: work directory, state, a graph's memory."""
    yield from ask(_call("DELETE", agent, session_id, environment=environment))


def kill_sessions(agent: str, *, environment: str | None = None) -> Operation[int]:
    """The emergency brake: kill every session of an agent. How many had a worker."""
    call = Call(method="POST", path=paths.v1(agent, "sessions:kill"), query={"environment": environment})
    reply = yield from ask(call)
    return int(reply.object().get("killed") or 0)


def move_sessions(agent: str, version: str, *, environment: str | None = None) -> Operation[answers.Answer]:
    """Let the sessions of a version that was replaced go on on what serves now."""
    body = {"version": version} | ({"environment": environment} if environment is not None else {})
    reply = yield from ask(Call(method="POST", path=paths.v1(agent, "sessions:move"), json=body))
    return answers.Answer(reply.object())


def exec_in_session(
    agent: str,
    session_id: str,
    command: Sequence[str],
    *,
    stdin: str | None = None,
    timeout: float | None = None,
    environment: str | None = None,
) -> feeds.Feed[answers.Answer]:
    """Run a command in a session's box: `{"stream", "data"}` as it comes, at last `{"exit": code}`."""
    body = {"command": list(command)} | paths.given(stdin=stdin, timeout_s=timeout)
    path = paths.v1(agent, "sessions", session_id, "exec")
    return feeds.LineFeed(Call(method="POST", path=path, json=body, query={"environment": environment}))


def _call(method: str, agent: str, session_id: str, *verb: str, environment: str | None) -> Call:
    return Call(method=method, path=paths.v1(agent, "sessions", session_id, *verb), query={"environment": environment})
