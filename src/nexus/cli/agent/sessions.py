"""`nexus ai agent sessions`: list, show, open, stop, kill, delete, logs, exec."""

import sys
from typing import Annotated, Any

import typer

from nexus.cli import connect, screen
from nexus.cli.agent import logs as agent_logs
from nexus.cli.options import Agent, Environment, Json
from nexus.core import errors

Session = Annotated[str, typer.Argument(help="Id of the session.", show_default=False)]


def register(app: typer.Typer) -> None:
    sessions = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Sessions of agents.")
    sessions.command("list")(list_sessions)
    sessions.command("show")(show)
    sessions.command("open")(open_session)
    sessions.command("stop")(stop)
    sessions.command("kill")(kill)
    sessions.command("delete")(delete)
    sessions.command("logs")(logs)
    sessions.command("exec", context_settings={"ignore_unknown_options": True})(run_command)
    app.add_typer(sessions, name="sessions")


def list_sessions(
    agent: Annotated[str | None, typer.Argument(help="Only this agent's.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many.")] = 50,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """List sessions: those with a worker of their own first, then the others by when they ran last."""
    with connect.open_client() as host:
        found = host.sessions.list(agent, environment=environment, limit=limit)
    if as_json:
        screen.write_json(found)
        return
    screen.table(
        ("SESSION", "AGENT", "VERSION", "PHASE", "RUNS", "CPU", "MEMORY", "IDLE", "AGE"),
        [
            (
                one.get("session_id"), one.get("agent"), one.get("version"), screen.phase(one.get("phase")), one.get("runs"),
                "-" if one.get("cpu_s") is None else f"{one['cpu_s']:.2f} s", screen.size(one.get("memory_bytes")),
                screen.ago(one.get("last_active_at")), screen.ago(one.get("created_at")),
            )
            for one in found
        ],
        empty="no sessions yet",
    )  # fmt: skip


def show(agent: Agent, session: Session, environment: Environment = None, as_json: Json = False) -> None:
    """Show a session: its worker, its runs, what it used."""
    with connect.open_client() as host:
        found = host.sessions.show(agent, session, environment=environment)
    if as_json:
        screen.write_json(found)
        return
    _show(found)


def _show(one: dict[str, Any]) -> None:
    isolation = "a worker of its own" if one.get("isolation") == "session" else "served by its instance, with others"
    memory = one.get("memory_byte_seconds")
    screen.table(
        ("", str(one.get("session_id"))),
        [
            ("agent", f"{one.get('agent')} {one.get('version')} in {one.get('environment')}"),
            ("phase", screen.phase(one.get("phase"))),
            ("isolation", isolation if one.get("phase") != "past" else "no worker now"),
            ("instance", one.get("instance_id")),
            ("pid", one.get("pid")),
            ("worker came by", one.get("how")),
            ("began", screen.moment(one.get("created_at"))),
            ("active", f"{screen.ago(one.get('last_active_at'))} ago"),
            ("ends at the latest", screen.moment(one.get("expires_at"))),
            ("runs", f"{one.get('runs')} ({one.get('failed') or 0} failed), {one.get('busy_s') or 0:.1f} s in all"),
            ("cpu", "-" if one.get("cpu_s") is None else f"{one['cpu_s']:.3f} s"),
            ("memory", f"{screen.size(one.get('memory_bytes'))} now"),
            ("memory over time", "-" if memory is None else f"{memory / 2**30 / 3600:.4f} GiB hours"),
            ("bytes", f"{one.get('bytes_in') or 0} in, {one.get('bytes_out') or 0} out"),
            ("of these by its way out", f"{one.get('network_in') or 0} in, {one.get('network_out') or 0} out"),
        ],
        empty="",
    )
    problem = one.get("problem") or {}
    if problem:
        screen.note(f"  ended: {problem.get('cause') or problem.get('detail')}", "red")
        if problem.get("next_step"):
            screen.note(f"  next: {problem['next_step']}")


def open_session(
    agent: Agent,
    session: Annotated[str | None, typer.Argument(help="Id it shall have; made when left out.")] = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Give a session its worker before its first run."""
    with connect.open_client() as host:
        found = host.sessions.open(agent, session, environment=environment)
    screen.give(found, as_json=as_json, text=str(found.get("session_id")))


def stop(
    agent: Agent,
    session: Annotated[str | None, typer.Argument(help="Id of the session.", show_default=False)] = None,
    grace: Annotated[float, typer.Option("--grace", min=0, max=3600, help="Seconds that runs in hand may take.")] = 10.0,
    version: Annotated[
        str | None, typer.Option("--version", help="All sessions of this old version: they go on on the one that serves.")
    ] = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Stop a session's worker and keep what is to be kept; its next run goes on from there. With --version those of an old
    version end with it."""
    if (session is None) == (version is None):
        raise errors.Invalid(
            "name a session, or a version whose sessions shall move",
            code="usage",
            next_step="nexus ai agent sessions stop AGENT SESSION, or: nexus ai agent sessions stop AGENT --version VERSION",
        )
    with connect.open_client() as host:
        if session is None:
            moved = host.sessions.move(agent, str(version), environment=environment)
            text = f"sessions of {agent} {version} go on on the version that serves in {moved.get('environment')}"
            screen.give(moved, as_json=as_json, text=text)
            return
        found = host.sessions.stop(agent, session, environment=environment, grace=grace)
    screen.give(found, as_json=as_json, text=f"{session} is stopped ({found.get('phase')})")


def kill(
    agent: Annotated[str | None, typer.Argument(help="Name of the agent.", show_default=False)] = None,
    session: Annotated[str | None, typer.Argument(help="Id of the session.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="Every session of the agent: the emergency brake.")] = False,
    named: Annotated[str | None, typer.Option("--agent", help="Name of the agent, as an option.", show_default=False)] = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Kill a session's worker and everything in its box, or with --all those of every session of an agent."""
    if agent is not None and named is not None and session is None and not every:
        agent, session = named, agent
    chosen = named or agent
    if chosen is None or (session is None) != every:
        raise errors.Invalid(
            "name an agent and a session, or an agent and --all",
            code="usage",
            next_step="nexus ai agent sessions kill AGENT SESSION, or: nexus ai agent sessions kill --all --agent AGENT",
        )
    with connect.open_client() as host:
        if session is None:
            count = host.sessions.kill_all(chosen, environment=environment)
            screen.give({"killed": count, "agent": chosen}, as_json=as_json, text=f"killed {count} sessions of {chosen}")
            return
        found = host.sessions.kill(chosen, session, environment=environment)
    screen.give(found, as_json=as_json, text=f"{session} is killed")


def delete(
    agent: Agent,
    session: Session,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Delete a session with all that was kept of it: its worker, work directory, state and a graph's memory. Records of its
    runs stay."""
    if not yes and not as_json and sys.stdin.isatty():
        typer.confirm(f"Delete session {session} of {agent} and all that it remembers?", abort=True, err=True)
    with connect.open_client() as host:
        host.sessions.delete(agent, session, environment=environment)
    screen.give({"deleted": session, "agent": agent}, as_json=as_json, text=f"{session} is deleted")


def logs(
    agent: Agent,
    session: Session,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing new lines.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Only the last so many lines.")] = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Show what a session wrote, oldest first."""
    agent_logs.logs(agent, follow=follow, session=session, limit=limit, environment=environment, as_json=as_json)


def run_command(
    agent: Agent,
    session: Session,
    command: Annotated[list[str], typer.Argument(help="The command and its words, after --.", show_default=False)],
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, max=3600, help="Seconds it may take.")] = 60.0,
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Give it what comes in on standard input.")] = False,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Run a command in a session's box, with its rights and limits. Exits as the command did."""
    given = sys.stdin.buffer.read(1_000_000).decode("utf-8", "replace") if stdin else None
    code: int | None = None
    with (
        connect.open_client() as host,
        host.sessions.exec(agent, session, command, stdin=given, timeout=timeout, environment=environment) as lines,
    ):
        for line in lines:
            if as_json:
                screen.write_json(line, indent=None)
            elif "data" in line:
                _write(str(line["data"]), to_errors=line.get("stream") == "stderr")
            if "exit" in line:
                code = int(line["exit"])
    if code is None:
        raise errors.Unavailable(
            "the command's end was not told", code="session.exec_lost", cause="the connection broke off", next_step="run it again"
        )
    if code:
        raise typer.Exit(code if 0 < code < 256 else 1)


def _write(data: str, *, to_errors: bool) -> None:
    out = sys.stderr if to_errors else sys.stdout
    out.write(screen.clean(data) if out.isatty() else data)
    out.flush()
