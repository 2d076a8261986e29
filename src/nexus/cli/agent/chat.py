"""`nexus ai agent chat`: one session, one line after the other."""

import secrets
import sys
from typing import Annotated

import typer

from nexus.cli import connect, screen
from nexus.cli.agent import inputs, running
from nexus.cli.options import Agent, Environment, Json
from nexus.core import errors


def register(app: typer.Typer) -> None:
    app.command("chat")(chat)


def chat(
    agent: Agent,
    session: inputs.Session = None,
    environment: Environment = None,
    context: inputs.Context = None,
    plain: Annotated[bool, typer.Option("--no-stream", help="Print each answer when it is whole.")] = False,
    as_json: Json = False,
) -> None:
    """Talk with an agent in one session. Ctrl-C stops an answer; Ctrl-D or /quit ends the conversation."""
    said = inputs.read_context(context)
    session = session or f"chat-{secrets.token_hex(8)}"
    screen.note(f"session {session}; end with /quit or Ctrl-D")
    with connect.open_client() as host:
        while (line := _ask()) is not None:
            if not line:
                continue
            try:
                if plain:
                    answer = host.agents.run(agent, line, context=said, session_id=session, environment=environment)
                    screen.give(answer.as_dict(), as_json=as_json, text=screen.as_text(answer.output))
                else:
                    stream = host.agents.stream(agent, line, context=said, session_id=session, environment=environment)
                    running.show_stream(stream, as_json=as_json)
            except KeyboardInterrupt:
                screen.note("\nstopped")
            except (errors.AgentFailed, errors.Exhausted) as error:
                screen.show_error(error, as_json=as_json)


def _ask() -> str | None:
    """The next line; None when the conversation is over."""
    if sys.stdin.isatty():
        screen.to_user().print("> ", end="", style="bold")
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        return None
    if not line or line.strip() in ("/quit", "/exit"):
        return None
    return line.strip()
