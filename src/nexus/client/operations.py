"""Every operation of the client as a generator of steps (`calls`), or as a feed. No I/O: the transports drive them.

The arguments here are the arguments of `client.agents.run(…)` and so on, for the blocking and the awaiting client alike.
"""

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from nexus.client import answers, feeds
from nexus.client.calls import Call, Operation, Pause, ask
from nexus.client.paths import agent as _agent
from nexus.client.paths import given as _given
from nexus.client.paths import header_text as _header_text
from nexus.client.paths import run_headers as _run_headers
from nexus.client.paths import task as _task
from nexus.client.paths import v1 as _v1
from nexus.core import errors, names
from nexus.wire import headers, problem

_DONE = frozenset({"completed", "failed", "cancelled"})
_PATIENCE = 15
_HOLD_S = 20.0


def run(
    name: str,
    input: Any = None,
    *,
    context: Mapping[str, Any] | None = None,
    session_id: str | None = None,
    environment: str | None = None,
    timeout: float | None = None,
) -> Operation[answers.RunResult]:
    """Run an agent and wait for its answer, however long it takes unless `timeout` (seconds) is given."""
    sent = _run_headers(session_id, environment)
    body = {"input": input, "context": dict(context or {})}
    call = Call(method="POST", path=_agent(name, "run"), json=body, headers=sent, patient=timeout is None, timeout_s=timeout)
    reply = yield from ask(call)
    answer = reply.object()
    metadata = answer.get("metadata")
    return answers.RunResult(
        output=answer.get("output"),
        metadata=metadata if isinstance(metadata, dict) else {},
        run_id=reply.headers.get(headers.RUN_ID.lower()),
        session_id=reply.headers.get(headers.SESSION_ID.lower()),
        version=reply.headers.get(headers.VERSION.lower()),
    )


def stream(
    name: str,
    input: Any = None,
    *,
    context: Mapping[str, Any] | None = None,
    session_id: str | None = None,
    environment: str | None = None,
) -> feeds.Feed[answers.Chunk]:
    """Run an agent and iterate over what it says while it says it. Closing the stream cancels the run."""
    sent = _run_headers(session_id, environment)
    body = {"input": input, "context": dict(context or {})}
    return feeds.RunFeed(Call(method="POST", path=_agent(name, "stream"), json=body, headers=sent))


def submit(
    name: str,
    input: Any = None,
    *,
    webhook: str | None = None,
    context: Mapping[str, Any] | None = None,
    session_id: str | None = None,
    environment: str | None = None,
    idempotency_key: str | None = None,
    priority: int | None = None,
    delay: float | str | None = None,
    run_at: str | None = None,
    queue_timeout: float | str | None = None,
    run_timeout: float | str | None = None,
    total_timeout: float | str | None = None,
    max_attempts: int | None = None,
) -> Operation[answers.Answer]:
    """Hand over a task and return at once: `{"task_id": "task_…", "status": "pending"}`.

    `webhook` receives the result. The same `idempotency_key` twice is one task. Durations are seconds or `"5m"`; `run_at`
    is RFC 3339 with an offset.
    """
    sent = _run_headers(session_id, environment)
    if idempotency_key is not None:
        sent[headers.IDEMPOTENCY_KEY] = _header_text(idempotency_key, "idempotency key")
    body = {"input": input, "context": dict(context or {}), "webhook": webhook, "session_id": session_id}
    body |= _given(
        priority=priority,
        delay=delay,
        run_at=run_at,
        queue_timeout=queue_timeout,
        run_timeout=run_timeout,
        total_timeout=total_timeout,
        max_attempts=max_attempts,
    )
    reply = yield from ask(Call(method="POST", path=_agent(name, "tasks"), json=body, headers=sent))
    return answers.submitted(reply.object())


def status(task_id: str) -> Operation[answers.Answer]:
    """How far a task is: `{"status": "running", "progress": 45}`."""
    reply = yield from ask(Call(method="GET", path=_task(task_id)))
    return answers.task_status(reply.object())


def wait(task_id: str, timeout: float | None = None) -> Operation[answers.Answer]:
    """The task once it is over, however it ended. `timeout` in seconds: then `Unavailable` (code `task.not_finished`)."""
    began, pause, asked, failures = time.monotonic(), 0.05, "", 0
    while True:
        waited = time.monotonic() - began
        try:
            held = 0.0 if not asked else _HOLD_S if timeout is None else max(0.0, min(_HOLD_S, timeout - waited))
            reply = yield from ask(Call(method="GET", path=_task(task_id), query={"wait": f"{held:.3f}"} if held else {}))
        except errors.Unavailable:
            failures += 1
            if failures > _PATIENCE or not asked:
                raise
        else:
            failures = 0
            view = reply.object()
            asked = str(view.get("status"))
            if asked in _DONE:
                return answers.task_status(view)
        waited = time.monotonic() - began
        if timeout is not None and waited >= timeout:
            raise errors.Unavailable(
                f"task {task_id} is {asked} after {timeout:g} s",
                code="task.not_finished",
                next_step=f"nexus ai agent task status {task_id}",
            )
        pause = min(pause * 1.5, 1.0)
        if timeout is not None:
            pause = max(min(pause, timeout - waited), 0.001)
        yield Pause(seconds=pause)


def result(task_id: str, timeout: float | None = None) -> Operation[answers.RunResult]:
    """The output of a task, waiting for it; a failed or cancelled task raises its error."""
    finished = yield from wait(task_id, timeout)
    if finished["status"] == "completed":
        view = finished.view
        return answers.RunResult(
            output=view.get("output"), metadata=view.get("metadata") or {}, run_id=task_id, session_id=view.get("session_id")
        )
    told = finished.view.get("error")
    if isinstance(told, dict) and told.get("code"):
        raise problem.parse(told)
    raise errors.AgentFailed(f"task {task_id} was {finished['status']}", code=f"run.{finished['status']}")


def cancel(task_id: str) -> Operation[answers.Answer]:
    """Stop a task. One that has not begun never will; one that runs is interrupted."""
    reply = yield from ask(Call(method="POST", path=_task(task_id) + "/cancel"))
    return answers.task_status(reply.object())


def events(task_id: str, after: str | None = None) -> feeds.Feed[answers.Chunk]:
    """A task's events from the first (or from the one after id `after`) to its last, as they happen."""
    return feeds.TaskFeed(Call(method="GET", path=_task(task_id) + "/events"), after=after)


def tasks(
    agent: str | None = None,
    *,
    status: str | None = None,
    limit: int | None = None,
    environment: str | None = None,
    dead: bool = False,
) -> Operation[list[answers.Answer]]:
    """Tasks, newest first. `dead`: only those that failed for good and were not queued again."""
    query = {"agent": agent, "status": status, "limit": limit, "environment": environment, "dead": "true" if dead else None}
    reply = yield from ask(Call(method="GET", path="/tasks", query=query))
    return [answers.Answer(entry) for entry in reply.items()]


def list_agents() -> Operation[list[answers.Answer]]:
    """Every agent of the tenant with its deployments."""
    reply = yield from ask(Call(method="GET", path="/v1/agents"))
    return [answers.Answer(entry) for entry in reply.items()]


def show(name: str) -> Operation[answers.Answer]:
    reply = yield from ask(Call(method="GET", path=_v1(name)))
    return answers.Answer(reply.object())


def upload(name: str, package: bytes) -> Operation[answers.Answer]:
    """Store a version (`nexus.wire.archive.pack` makes the package). The same content again is the same version."""
    sent = {"Content-Type": "application/gzip"}
    reply = yield from ask(Call(method="POST", path=_v1(name, "versions"), content=package, headers=sent, patient=True))
    return answers.Answer(reply.object())


def versions(name: str) -> Operation[list[answers.Answer]]:
    """The stored versions of an agent, newest first."""
    reply = yield from ask(Call(method="GET", path=_v1(name, "versions")))
    return [answers.Answer(entry) for entry in reply.items()]


def deploy(
    name: str,
    version_id: str,
    *,
    environment: str = "development",
    replicas: int | None = None,
    cpu: str | None = None,
    memory: str | None = None,
    strategy: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Operation[answers.Answer]:
    """Make a stored version the target of an environment. Answers at once; `rollout` tells how it goes.

    `strategy` is `hosting.strategy` of config.yaml and replaces what it names: `{"type": "canary", "steps": [10, 100]}`.
    """
    body: dict[str, Any] = {"agent": name, "version_id": version_id, "environment": environment}
    body |= _given(replicas=replicas, cpu=cpu, memory=memory)
    body |= _given(strategy=dict(strategy) if strategy else None, options=dict(options) if options else None)
    reply = yield from ask(Call(method="POST", path="/v1/deployments", json=body))
    return answers.Answer(reply.object())


def deployment(deployment_id: str) -> Operation[answers.Answer]:
    reply = yield from ask(Call(method="GET", path=f"/v1/deployments/{quote(deployment_id, safe='')}"))
    return answers.Answer(reply.object())


def rollout(deployment_id: str, *, revision: int | None = None) -> feeds.Feed[answers.Answer]:
    """The steps of a revision (default: the newest) on its way, to the one that is `done`."""
    path = f"/v1/deployments/{quote(deployment_id, safe='')}/events"
    return feeds.RolloutFeed(Call(method="GET", path=path, query={"revision": revision}))


def promote(name: str, *, environment: str | None = None, variant: str | None = None) -> Operation[answers.Answer]:
    """Make the new version of a rollout in hand (or a variant of an A/B test) the only one."""
    body = _given(environment=environment, variant=variant)
    reply = yield from ask(Call(method="POST", path=_v1(name, "promote"), json=body))
    return answers.Answer(reply.object())


def abort(name: str, *, environment: str | None = None) -> Operation[answers.Answer]:
    """Give a rollout up; after a blue-green switch, switch back while the old colour stands by."""
    reply = yield from ask(Call(method="POST", path=_v1(name, "abort"), json=_given(environment=environment)))
    return answers.Answer(reply.object())


def rollout_status(name: str, *, environment: str | None = None) -> Operation[answers.Answer]:
    """Where the rollout in hand is, or how the last one ended."""
    reply = yield from ask(Call(method="GET", path=_v1(name, "rollout"), query={"environment": environment}))
    return answers.Answer(reply.object())


def rollout_report(name: str, *, environment: str | None = None) -> Operation[answers.Answer]:
    """How the versions of a rollout compare, with confidence intervals."""
    reply = yield from ask(Call(method="GET", path=_v1(name, "rollout", "report"), query={"environment": environment}))
    return answers.Answer(reply.object())


def history(name: str, *, environment: str | None = None) -> Operation[list[answers.Answer]]:
    reply = yield from ask(Call(method="GET", path=_v1(name, "history"), query={"environment": environment}))
    return [answers.Answer(entry) for entry in reply.items()]


def rollback(
    name: str, *, version: str | None = None, environment: str | None = None, sessions: str | None = None
) -> Operation[answers.Answer]:
    """Go back to the version before, or to a named one. `sessions`: `keep` or `move` those of the version that is given up."""
    body = _given(version=version, environment=environment, sessions=sessions)
    reply = yield from ask(Call(method="POST", path=_v1(name, "rollback"), json=body))
    return answers.Answer(reply.object())


def scale(
    name: str,
    *,
    replicas: int | None = None,
    autoscale: bool | None = None,
    environment: str | None = None,
    min_replicas: int | None = None,
    max_replicas: int | None = None,
    target_cpu: int | None = None,
    target_memory: int | None = None,
    cpu: str | None = None,
    memory: str | None = None,
) -> Operation[answers.Answer]:
    """Change how many instances there are, how large, and whether that follows the load."""
    body = _given(
        replicas=replicas,
        autoscale=autoscale,
        environment=environment,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        target_cpu=target_cpu,
        target_memory=target_memory,
        cpu=cpu,
        memory=memory,
    )
    reply = yield from ask(Call(method="POST", path=_v1(name, "scale"), json=body))
    return answers.Answer(reply.object())


def delete(name: str, *, environment: str | None = None) -> Operation[None]:
    """Remove an agent, or only its deployment in one environment. Runs in hand are finished."""
    yield from ask(Call(method="DELETE", path=_v1(name), query={"environment": environment}))


def logs(
    name: str,
    *,
    follow: bool = False,
    level: str | None = None,
    since: float | str | None = None,
    run: str | None = None,
    session: str | None = None,
    limit: int | None = None,
    environment: str | None = None,
) -> feeds.Feed[answers.Answer]:
    """Log lines, oldest first. `since` is in seconds since the epoch; with `follow` the stream goes on until it is closed."""
    query: dict[str, str | int | None] = {
        "follow": "true" if follow else None,
        "level": level,
        "since": None if since is None else str(since),
        "run": run,
        "session": session,
        "limit": limit,
        "environment": environment,
    }
    return feeds.LineFeed(Call(method="GET", path=_v1(name, "logs"), query=query))


def list_runs(agent: str | None = None, *, limit: int | None = None) -> Operation[list[answers.Answer]]:
    """Finished runs, newest first."""
    reply = yield from ask(Call(method="GET", path="/v1/runs", query={"agent": agent, "limit": limit}))
    return [answers.Answer(entry) for entry in reply.items()]


def list_secrets(agent: str) -> Operation[list[answers.Answer]]:
    """Names and fingerprints; never a value."""
    reply = yield from ask(Call(method="GET", path=_v1(agent, "secrets")))
    return [answers.Answer(entry) for entry in reply.items()]


def set_secret(agent: str, key: str, value: str) -> Operation[answers.Answer]:
    reply = yield from ask(Call(method="PUT", path=_v1(agent, "secrets", key), json={"value": value}))
    return answers.Answer(reply.object()) if reply.body.strip() else answers.Answer({"name": key})


def delete_secret(agent: str, key: str) -> Operation[None]:
    yield from ask(Call(method="DELETE", path=_v1(agent, "secrets", key)))


def create_key(
    name: str = "",
    *,
    roles: list[str] | None = None,
    tenant: str | None = None,
    environment: str | None = None,
    agents: list[str] | None = None,
    expires_in_s: float | None = None,
    requests_per_minute: int | None = None,
) -> Operation[answers.Answer]:
    """A new API key; its `key` is told this once."""
    body = {"name": name} | _given(
        roles=roles,
        tenant=tenant,
        environment=environment,
        agents=agents,
        expires_in_s=expires_in_s,
        requests_per_minute=requests_per_minute,
    )
    reply = yield from ask(Call(method="POST", path="/v1/keys", json=body))
    return answers.Answer(reply.object())


def list_keys() -> Operation[list[answers.Answer]]:
    reply = yield from ask(Call(method="GET", path="/v1/keys"))
    return [answers.Answer(entry) for entry in reply.items()]


def revoke_key(key_id: str) -> Operation[None]:
    yield from ask(Call(method="DELETE", path=f"/v1/keys/{quote(key_id, safe='')}"))


def rotate_master_key() -> Operation[answers.Answer]:
    """Replace the key under which every secret's own key is kept (admins only). `rewrapped` says how many were."""
    reply = yield from ask(Call(method="POST", path="/v1/host/rotate-key"))
    return answers.Answer(reply.object())


def create_tenant(name: str) -> Operation[answers.Answer]:
    reply = yield from ask(Call(method="POST", path="/v1/tenants", json={"name": names.parse_label(name, "tenant name")}))
    return answers.Answer(reply.object())


def list_tenants() -> Operation[list[answers.Answer]]:
    reply = yield from ask(Call(method="GET", path="/v1/tenants"))
    return [answers.Answer(entry) for entry in reply.items()]


def whoami() -> Operation[answers.Answer]:
    """The principal the key stands for."""
    reply = yield from ask(Call(method="GET", path="/v1/whoami"))
    return answers.Answer(reply.object())


def host_status() -> Operation[answers.Answer]:
    reply = yield from ask(Call(method="GET", path="/v1/status"))
    return answers.Answer(reply.object())


def metrics() -> Operation[str]:
    """The metrics in Prometheus' text format."""
    reply = yield from ask(Call(method="GET", path="/metrics"))
    return reply.body.decode("utf-8", "replace")
