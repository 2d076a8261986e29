"""`nexus up`, `down`, `status` and `doctor`: the host on this machine. Everything heavier than typer loads inside a command."""

import json
import os
import sys
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
HomeOption = Annotated[str | None, typer.Option("--home", help="Directory of the host's state (NEXUS_HOME, default ~/.nexus).")]


def register(app: typer.Typer) -> None:
    """Add the host's commands to the root command."""
    app.command("up")(up)
    app.command("down")(down)
    app.command("status")(status)
    app.command("doctor")(doctor)


def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on (NEXUS_HOST, default 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one (NEXUS_PORT, default 8700).")] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Run in the background; returns when it answers.")] = False,
    gateways: Annotated[int | None, typer.Option(help="Gateway processes (NEXUS_GATEWAYS, default one per core).")] = None,
    dispatchers: Annotated[
        int | None, typer.Option(help="Processes that run tasks (NEXUS_DISPATCHERS, default 0: control does it).")
    ] = None,
    home: HomeOption = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Bring a running host to this environment without failing a request.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start the host. In the foreground it shows the processes' logs, and Ctrl-C stops it.

    A host that another version started is taken over: control starts again, the gateways are replaced without failing a request.
    """
    from nexus.apps import host as verbs
    from nexus.apps import settings
    from nexus.core import errors
    from nexus.wire import problem

    if as_json and not detach:
        raise errors.Invalid("--json needs --detach", cause="in the foreground the host shows its logs until it is stopped")
    chosen = {"NEXUS_HOST": host, "NEXUS_PORT": port, "NEXUS_GATEWAYS": gateways}
    chosen |= {"NEXUS_DISPATCHERS": dispatchers, "NEXUS_HOME": home}
    environ = dict(os.environ) | {name: str(value) for name, value in chosen.items() if value is not None}
    wanted = settings.read_settings(environ)
    environ["NEXUS_HOME"] = str(wanted.home.root)
    replace = reload or verbs.is_of_another_version(wanted.home)
    if not detach:
        verbs.become_keeper(environ, replace=replace)
    outcome = verbs.start_detached(environ, log=wanted.home.logs / "host.log", replace=replace)
    if not outcome["ok"]:
        raise problem.parse(outcome["problem"])
    if as_json:
        typer.echo(json.dumps(outcome))
        return
    for line in outcome["lines"]:
        typer.echo(line)


def down(
    force: Annotated[bool, typer.Option("--force", help="Do not wait for runs in hand; kill what lingers.")] = False,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Stop the host, its agents and its database. Nothing that was acknowledged is lost."""
    from nexus.apps import host as verbs
    from nexus.kit.home import find_home

    where = find_home(home or os.environ.get("NEXUS_HOME"))
    environ = dict(os.environ) | {"NEXUS_HOME": str(where.root)}
    stopped = verbs.stop(where, force=force, environ=environ, say=lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(json.dumps({"stopped": stopped, "home": str(where.root)}))
    else:
        typer.echo("stopped" if stopped else f"no host was running on {where.root}")


def status(home: HomeOption = None, as_json: Json = False) -> None:
    """Show the host's processes and deployments. Exit code 9 when no host runs."""
    from nexus.apps import host as verbs
    from nexus.kit.home import find_home

    where = find_home(home or os.environ.get("NEXUS_HOME"))
    found = verbs.status(where, api_key=os.environ.get("NEXUS_API_KEY") or verbs.read_admin_key(where))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for line in render_status(found):
            typer.echo(line)
    raise typer.Exit(0 if found["running"] else 9)


def doctor(home: HomeOption = None, as_json: Json = False) -> None:
    """Say what this machine can and cannot do, and how to mend it. Exit code 9 when the host could not run here."""
    from nexus.apps import doctor as checks
    from nexus.apps import settings

    environ = dict(os.environ) | ({"NEXUS_HOME": home} if home else {})
    findings = checks.examine(settings.read_settings(environ), environ)
    if as_json:
        typer.echo(json.dumps({"ok": checks.is_fit(findings), "findings": [checks.to_json(entry) for entry in findings]}))
    else:
        for line in checks.render(findings, colour=sys.stdout.isatty()):
            typer.echo(line)
    raise typer.Exit(0 if checks.is_fit(findings) else 9)


def render_status(found: dict[str, Any]) -> list[str]:
    """The status as lines for a terminal."""
    if not found["running"]:
        return [f"no host runs on {found['home']}" + (f" ({found['cause']})" if "cause" in found else ""), "  next: nexus up -d"]
    lines = [
        f"Nexus {found['version']} at {found['origin']}: gateway {found['gateway']}" + ("" if found["ready"] else ", not ready"),
        f"home {found['home']}, database {found['database']}, memory {_mib(found['memory_bytes'])} in all",
        "",
        f"{'PROCESS':<20} {'PID':>8} {'MEMORY':>10} {'UPTIME':>10} {'RESTARTS':>9}",
    ]
    for entry in found["processes"]:
        uptime = _age(entry["uptime_s"]) if entry["alive"] else "ended"
        lines.append(
            f"{entry['name']:<20} {entry['pid']:>8} {_mib(entry['memory_bytes']):>10} {uptime:>10} {entry['restarts']:>9}"
        )
    if (agents := found.get("agents")) and agents["processes"]:
        lines.append(f"{'agents':<20} {agents['processes']:>8} {_mib(agents['memory_bytes']):>10}")
    deployments = found.get("deployments")
    if deployments is None:
        lines += ["", f"deployments: not known ({found.get('deployments_cause', 'no key; run nexus login')})"]
    elif not deployments:
        lines += ["", "no deployments yet; next: nexus ai agent init hello"]
    else:
        lines += ["", f"{'AGENT':<24} {'ENVIRONMENT':<12} {'VERSION':<12} {'PHASE':<12} READY"]
        lines += [
            f"{entry['agent']:<24} {entry['environment']:<12} {entry['version']:<12} {entry['phase']:<12} "
            f"{entry['ready']}/{entry['replicas']}"
            for entry in deployments
        ]
    return lines


def _mib(size: int) -> str:
    return f"{size / 1048576:.1f} MiB"


def _age(seconds: float) -> str:
    """The two largest units: `2d3h`, `5m1s`, `7s`."""
    parts: list[str] = []
    rest = int(seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])
