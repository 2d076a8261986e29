"""`nexus ai agent run` and `stream`: one run, its answer on standard output, what it cost on standard error."""

from typing import Any

import typer

from nexus import client
from nexus.cli import connect, screen
from nexus.cli.agent import inputs
from nexus.cli.options import Agent, Environment, Json


def register(app: typer.Typer) -> None:
    app.command("run")(run)
    app.command("stream")(stream)


def run(
    agent: Agent,
    given: inputs.Input = None,
    file: inputs.File = None,
    data: inputs.Data = None,
    context: inputs.Context = None,
    session: inputs.Session = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Run an agent and print its answer."""
    value, said = inputs.read(given, file, data), inputs.read_context(context)
    with connect.open_client() as host:
        answer = host.agents.run(agent, value, context=said, session_id=session, environment=environment)
    told = answer.as_dict() | {"run_id": answer.run_id, "session_id": answer.session_id, "version": answer.version}
    screen.give(told, as_json=as_json, text=screen.as_text(answer.output))
    if not as_json:
        screen.note(cost(answer.metadata, session=answer.session_id))


def stream(
    agent: Agent,
    given: inputs.Input = None,
    file: inputs.File = None,
    data: inputs.Data = None,
    context: inputs.Context = None,
    session: inputs.Session = None,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Run an agent and print its answer as it is made. With --json each event is one line."""
    value, said = inputs.read(given, file, data), inputs.read_context(context)
    with connect.open_client() as host:
        show_stream(host.agents.stream(agent, value, context=said, session_id=session, environment=environment), as_json=as_json)


def show_stream(stream: client.Stream[client.Chunk], *, as_json: bool) -> None:
    """Print chunks as they come; other events are noted beside the text."""
    told = False
    with stream:
        for chunk in stream:
            if as_json:
                screen.write_json({"id": chunk.id, "event": chunk.event, "data": dict(chunk.data)}, indent=None)
                continue
            if chunk.text:
                told = True
                screen.write(chunk.text, end="")
            if chunk.event == "progress":
                screen.note(progress(chunk.data))
            elif chunk.event == "run.completed":
                screen.write("" if told else screen.as_text(chunk.output))
                screen.note(cost(chunk.metadata))


def progress(data: Any) -> str:
    percent, message = data.get("percent"), data.get("message")
    return " ".join(str(part) for part in (f"{percent:g} %" if isinstance(percent, int | float) else "", message) if part)


def cost(metadata: Any, *, session: str | None = None) -> str:
    """`1234 tokens · 340 ms · session ses_…`, of what is known."""
    parts = []
    if metadata.get("tokens_used"):
        parts.append(f"{metadata['tokens_used']} tokens")
    if isinstance(metadata.get("duration_ms"), int | float):
        parts.append(f"{metadata['duration_ms']:.0f} ms")
    if session or metadata.get("session_id"):
        parts.append(f"session {session or metadata['session_id']}")
    return " · ".join(parts) or "done"
