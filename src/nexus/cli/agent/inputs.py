"""Reading a run's input and context from the command line, a file or standard input."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nexus.core import errors

Input = Annotated[str | None, typer.Argument(help="The input; '-' reads it from standard input.", show_default=False)]
File = Annotated[Path | None, typer.Option("--file", "-f", help="Read the input from this file.")]
Data = Annotated[str | None, typer.Option("--data", "-d", help="The input as JSON instead of text.")]
Context = Annotated[list[str] | None, typer.Option("--context", "-c", help="key=value for the run's context; repeatable.")]
Session = Annotated[str | None, typer.Option("--session", "-s", help="Run in this session.")]


def read(given: str | None, file: Path | None, data: str | None) -> Any:
    """The input, from exactly one of the places it may be in."""
    places = [place for place in (given, file, data) if place is not None]
    if len(places) != 1:
        raise errors.Invalid(
            "give one input" if not places else "give the input once, not twice",
            code="input.missing" if not places else "input.ambiguous",
            next_step="""write it after the agent's name, or use '-' for standard input, --file PATH or --data '{"a": 1}'""",
        )
    if data is not None:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise errors.Invalid(
                "--data is not JSON", code="input.invalid_json", cause=str(error), next_step="give plain text without --data"
            ) from error
    if file is not None:
        return _text(file.read_bytes(), str(file))
    if given == "-":
        return _text(sys.stdin.buffer.read(), "standard input")
    return given


def _text(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.Invalid(
            f"{source} is not UTF-8 text", code="input.not_text", cause=str(error), next_step="convert it to text first"
        ) from error


def read_context(pairs: list[str] | None) -> dict[str, str]:
    context = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise errors.Invalid(
                f"--context {pair[:80]!r} is not key=value", code="context.invalid", next_step="for example --context user_id=123"
            )
        context[key] = value
    return context
