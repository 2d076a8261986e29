"""`nexus ai agent deploy`: pack, upload, deploy, watch, and say how to call it."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from nexus import client
from nexus.cli import connect, screen
from nexus.cli.agent import project, rollout, strategies
from nexus.cli.options import Json
from nexus.core import errors
from nexus.wire import archive


def register(app: typer.Typer) -> None:
    app.command("deploy")(deploy)


def deploy(
    agent: Annotated[str | None, typer.Argument(help="Name of the agent, or path of its folder; default: this folder.")] = None,
    environment: Annotated[str, typer.Option("--env", "-e", help="development, staging or production.")] = "development",
    replicas: Annotated[int | None, typer.Option("--replicas", min=0, help="How many instances.")] = None,
    cpu: Annotated[str | None, typer.Option("--cpu", "--cpu-limit", help="CPU per instance: 500m, 2.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", "--memory-limit", help="Memory per instance: 512Mi, 2GB.")] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Deploy under (or, without a folder, again) this version.")
    ] = None,
    path: Annotated[Path | None, typer.Option("--path", help="The agent's folder.")] = None,
    strategy: Annotated[str | None, typer.Option("--strategy", help="rolling, blue-green, canary or ab.")] = None,
    max_surge: Annotated[str | None, typer.Option("--max-surge", help="Rolling: instances more than wanted: 2, 25%.")] = None,
    max_unavailable: Annotated[
        str | None, typer.Option("--max-unavailable", help="Rolling: instances less than wanted: 1, 25%.")
    ] = None,
    canary_steps: Annotated[str | None, typer.Option("--canary-steps", help="Canary: shares in per cent: 10,50,100.")] = None,
    canary_interval: Annotated[
        str | None, typer.Option("--canary-interval", help="Canary: how long each share is watched: 60s, 5m.")
    ] = None,
    canary_runs: Annotated[
        int | None, typer.Option("--canary-runs", min=1, help="Canary: runs of the new version before it is promoted.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option("--keep", help="Blue-green: how long the old colour stays ready after the switch: 5m.")
    ] = None,
    auto_promote: Annotated[
        bool | None, typer.Option("--auto-promote/--manual", help="Blue-green, canary: without a person, or by promote.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option("--variant", help="A/B: name=version:weight, once for each; weights make 100.")
    ] = None,
    split_by: Annotated[str | None, typer.Option("--split-by", help="What stays with one version: session or user.")] = None,
    cache_responses: Annotated[
        bool | None, typer.Option("--cache-responses/--no-cache-responses", help="Give the same answer again for a while.")
    ] = None,
    cache_ttl: Annotated[str | None, typer.Option("--cache-ttl", help="How long an answer may be given again: 300s.")] = None,
    cache_size: Annotated[str | None, typer.Option("--cache-size", help="Memory for such answers: 100MB.")] = None,
    circuit_breaker: Annotated[
        bool | None, typer.Option("--circuit-breaker/--no-circuit-breaker", help="Leave an instance that fails alone.")
    ] = None,
    failure_threshold: Annotated[
        int | None, typer.Option("--failure-threshold", min=1, help="Failures in a row that make it so: 5.")
    ] = None,
    load_balancer: Annotated[
        str | None, typer.Option("--load-balancer", help="round-robin, least-connections, sticky or health-based.")
    ] = None,
    network: Annotated[str | None, typer.Option("--network", help="host, isolated or egress.")] = None,
    network_limit: Annotated[
        str | None, typer.Option("--network-limit", help="Rate of the way out, each way: 100Mbps, 2MB/s.")
    ] = None,
    security_context: Annotated[str | None, typer.Option("--security-context", help="restricted or baseline.")] = None,
    read_only_root: Annotated[
        bool | None, typer.Option("--read-only-root/--writable-root", help="Whether / of its box takes new files.")
    ] = None,
    disk: Annotated[str | None, typer.Option("--disk-limit", help="What its work directory may hold: 2Gi.")] = None,
    processes: Annotated[int | None, typer.Option("--process-limit", min=16, help="Processes and threads at once: 1024.")] = None,
    sessions: Annotated[
        str | None, typer.Option("--sessions", help="Those that began on an older version: keep it, or move to this one.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Watch until it serves.")] = True,
    as_json: Json = False,
) -> None:
    """Deploy an agent and watch it start.

    A name without a folder here means an agent the host has already: its newest version goes to the environment.
    """
    how = strategies.read(
        kind=strategy,
        max_surge=max_surge,
        max_unavailable=max_unavailable,
        steps=canary_steps,
        interval=canary_interval,
        samples=canary_runs,
        keep=keep,
        auto_promote=auto_promote,
        variants=variant or [],
        split_by=split_by,
    )
    options = {
        "cache_responses": True if cache_responses is None and (cache_ttl or cache_size) else cache_responses,
        "cache_ttl": cache_ttl,
        "cache_size": cache_size,
        "circuit_breaker": True if circuit_breaker is None and failure_threshold else circuit_breaker,
        "failure_threshold": failure_threshold,
        "load_balancer": load_balancer,
        "network": network,
        "network_limit": network_limit,
        "security_context": security_context,
        "read_only_root": read_only_root,
        "disk": disk,
        "processes": processes,
        "sessions": sessions,
    }
    options = {name: value for name, value in options.items() if value is not None}
    found = project.find(agent, path, Path.cwd())
    in_folder = found.config.version if found is not None else None
    if version is None and (tested := strategies.stored_version(how, in_folder)):
        agent, found, version = found.config.name if found is not None else agent, None, tested
    progress = rollout.Progress(screen.to_user())
    with connect.open_client() as host, progress.shown(quiet=as_json):
        if found is not None:
            name, version_id = _upload(host, project.with_version(found, version) if version else found, progress)
        else:
            name, version_id = str(agent), _stored(host, str(agent), version)
        progress.step("deploying", environment)
        started = host.agents.deploy(
            name,
            version_id,
            environment=environment,
            replicas=replicas,
            cpu=cpu,
            memory=memory,
            strategy=how,
            options=options,
        )
        try:
            view = rollout.watch(host, started, progress) if wait else started
        except KeyboardInterrupt:
            screen.note(f"the rollout goes on without you; see it with: nexus ai agent show {name}")
            raise
    told = dict(view.view) | {"curl": _curl(host, view)}
    screen.give(told, as_json=as_json, text=_summary(view, told["curl"], waited=wait))


def _upload(host: client.Client, found: project.Project, progress: rollout.Progress) -> tuple[str, str]:
    progress.step("packing", str(found.folder))
    packed = archive.pack(found.folder, replace={project.CONFIG: found.text.encode()})
    for warning in packed.warnings:
        screen.note(f"warning: {warning}", "yellow")
    progress.step("uploading", f"{packed.files} files, {screen.size(len(packed.data))}")
    version = host.agents.upload(found.config.name, packed.data)
    if not version.get("created", True):
        progress.detail(f"version {version['version']} is there already, unchanged")
    return found.config.name, version["id"]


def _stored(host: client.Client, name: str, version: str | None) -> str:
    """The id of a version the host has already: the named one, else the newest."""
    try:
        known = host.agents.versions(name)
    except errors.NotFound as error:
        raise errors.NotFound(
            f"there is no folder {name}/ here with a config.yaml, and the host has no agent {name!r}",
            code=error.code,
            next_step=f"go to the agent's folder, or make one: nexus ai agent init {name}",
        ) from error
    found = next((entry for entry in known if version in (None, entry.get("version"))), None)
    if found is None:
        raise errors.NotFound(
            f"{name} has no version {version or 'yet'} on the host",
            code="version.not_found",
            next_step="deploy it from its folder" if version is None else f"nexus ai agent history {name}",
        )
    return str(found["id"])


def _curl(host: client.Client, view: client.Answer) -> str:
    found = host.connection
    key = f"$(cat {shlex.quote(str(found.key_file))})" if found.key_file else "$NEXUS_API_KEY"
    url = view.get("url") or f"{found.base_url}/agents/{view['agent']}/run"
    lines = [f"curl -X POST {shlex.quote(str(url))}", f'-H "Authorization: Bearer {key}"', "-H 'Content-Type: application/json'"]
    if view.get("environment") != "production":
        lines.append(f"-H 'Nexus-Environment: {view.get('environment')}'")
    lines.append("""-d '{"input": "Hello"}'""")
    return " \\\n  ".join(lines)


def _summary(view: client.Answer, curl: str, *, waited: bool) -> str:
    state = f"{view.get('ready')} of {view.get('replicas')} ready" if waited else "rolling out"
    if waited and view.get("phase") == "rolling":
        state = f"under way; see it with: nexus ai agent rollout status {view['agent']} --env {view.get('environment')}"
    lines = [f"{view['agent']} {view.get('version')} in {view.get('environment')}: {state}", *_staying(view)]
    return "\n".join((*lines, f"URL: {view.get('url')}", "", curl))


def _staying(view: client.Answer) -> list[str]:
    """Old versions whose sessions go on, and how to move them."""
    old = sorted({str(one.get("version")) for one in view.get("instances") or () if one.get("phase") == "draining"})
    move = f"nexus ai agent sessions stop {view['agent']} --env {view.get('environment')} --version"
    return [f"sessions that began on {version} go on there; to move them: {move} {version}" for version in old]
