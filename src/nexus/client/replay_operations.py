"""A task run again against its recording, in an instance made for it that reaches nothing but the recording; see `operations`."""

import secrets

from nexus.client import answers, operations, paths
from nexus.client.calls import Call, Operation, Pause, ask
from nexus.core import errors

_OFFLINE = {"network": "isolated"}
_LOOK_S, _LONGEST_START_S = 0.1, 900.0


def scratch() -> str:
    """A name for the environment of one replay."""
    return f"replay-{secrets.token_hex(4)}"


def replay(
    task_id: str,
    *,
    version: str | None = None,
    environment: str | None = None,
    scratch_environment: str | None = None,
    timeout: float | None = None,
) -> Operation[answers.Answer]:
    """Run a finished task again on its own version, or `version`, and say where it first differs.

    For this the version is deployed to an environment of its own, without network, which is deleted again; with `environment` it
    runs where that deployment stands, with the network it has. `timeout` in seconds bounds the run.
    """
    if environment is not None:
        return (yield from _run(task_id, environment, timeout))
    original = yield from operations.status(task_id)
    agent = str(original["agent"])
    version_id = yield from _version(task_id, agent, version)
    where = scratch_environment or scratch()
    try:
        deployed = yield from operations.deploy(agent, version_id, environment=where, replicas=1, options=_OFFLINE)
        yield from _ready(str(deployed["id"]))
        report = yield from _run(task_id, where, timeout)
    except errors.NexusError:
        yield from _remove(agent, where)
        raise
    yield from _remove(agent, where)
    return report


def _run(task_id: str, environment: str, timeout: float | None) -> Operation[answers.Answer]:
    reply = yield from ask(Call(method="POST", path=paths.task(task_id) + "/replay", json={"environment": environment}))
    replay_id = str(reply.object()["task_id"])
    try:
        yield from operations.wait(replay_id, timeout)
    except errors.NexusError:
        yield from operations.cancel(replay_id)
        raise
    reply = yield from ask(Call(method="GET", path=paths.task(replay_id) + "/replay"))
    return answers.Answer(reply.object())


def _version(task_id: str, agent: str, wanted: str | None) -> Operation[str]:
    if wanted is None:
        reply = yield from ask(Call(method="GET", path=paths.task(task_id) + "/version"))
        wanted = reply.object().get("version")
        if wanted is None:
            raise errors.Conflict(
                f"task {task_id} never began, so there is nothing to replay",
                code="replay.never_began",
                next_step="submit it again: nexus ai agent task requeue",
            )
    known = yield from operations.versions(agent)
    plain = wanted.partition("+")[0]
    for entry in known:
        if entry.get("version") in (wanted, plain):
            return str(entry["id"])
    raise errors.NotFound(
        f"{agent} has no version {wanted} on the host",
        code="version.not_found",
        next_step=f"choose another with --version: nexus ai agent history {agent}",
    )


def _ready(deployment_id: str) -> Operation[None]:
    waited = 0.0
    while waited < _LONGEST_START_S:
        view = yield from operations.deployment(deployment_id)
        if view.get("phase") == "active" and view.get("ready"):
            return
        if view.get("phase") == "failed":
            told = view.get("problem") or {}
            raise errors.AgentFailed(
                "the version to replay does not start",
                code=str(told.get("code") or "replay.not_started"),
                cause=str(told.get("cause") or told.get("detail") or "") or None,
                next_step="see why: nexus ai agent logs, or replay where it runs with --env",
            )
        yield Pause(seconds=_LOOK_S)
        waited += _LOOK_S
    raise errors.Unavailable("the version to replay is not ready yet", code="replay.not_started", next_step="nexus status")


def _remove(agent: str, environment: str) -> Operation[None]:
    try:
        yield from operations.delete(agent, environment=environment)
    except errors.NotFound:
        return
