"""`nexus dev`: programs for those who develop Nexus or agents for it."""

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nexus.testing import fake_llm as fake


def register(app: typer.Typer) -> None:
    """Add the group `dev`."""
    group = typer.Typer(no_args_is_help=True, help="Tools for developing Nexus itself.")
    group.callback()(_nothing)
    group.command("fake-llm")(fake_llm)
    app.add_typer(group, name="dev")


def _nothing() -> None:
    """Tools for developing Nexus itself."""


def fake_llm(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.")] = 0,
    reply: Annotated[str | None, typer.Option(help="What to answer (default: as many words as --tokens).")] = None,
    tokens: Annotated[int, typer.Option(min=0, max=100_000, help="Length of the default answer.")] = 16,
    latency: Annotated[float, typer.Option(min=0, help="Seconds before an answer begins.")] = 0.0,
    piece: Annotated[float, typer.Option(min=0, help="Seconds between streamed pieces.")] = 0.0,
    fail: Annotated[int | None, typer.Option(min=400, max=599, help="Answer with this status, e.g. 429 or 500.")] = None,
    fail_times: Annotated[int | None, typer.Option(min=0, help="… to so many requests only.")] = None,
    retry_after: Annotated[float | None, typer.Option(min=0, help="Retry-After of failures, in seconds.")] = None,
    cut_after: Annotated[int | None, typer.Option(min=0, help="Break the connection after so many events.")] = None,
    garbage: Annotated[bool, typer.Option("--garbage", help="Answer something that is no answer.")] = False,
    no_usage: Annotated[bool, typer.Option("--no-usage", help="Leave token usage out.")] = False,
    key: Annotated[str | None, typer.Option(help="Refuse every other API key.")] = None,
) -> None:
    """A scripted model provider: OpenAI chat, completions, responses, embeddings and Anthropic messages, streaming too."""
    from nexus.testing import fake_llm as fake

    knobs = fake.Knobs(
        reply=reply, tokens=tokens, latency_s=latency, piece_s=piece, fail=fail, fail_times=fail_times, retry_after_s=retry_after,
        cut_after=cut_after, garbage=garbage, usage=not no_usage, key=key,
    )  # fmt: skip
    try:
        asyncio.run(_serve(fake.FakeLlm(knobs=knobs, port=port)))
    except OSError as error:
        from nexus.core import errors

        raise errors.Unavailable(
            f"cannot listen on 127.0.0.1:{port}",
            code="port.in_use",
            cause=error.strerror or str(error),
            next_step="choose another --port, or 0 for a free one",
        ) from error


async def _serve(server: "fake.FakeLlm") -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    async with server:
        typer.echo(f"OPENAI_BASE_URL={server.base_url}")
        typer.echo(f"ANTHROPIC_BASE_URL={server.origin}")
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), 0.2)
            for request in server.requests:
                typer.echo(f"{request.method} {request.path} model={_model(request.body)}", err=True)
            server.requests.clear()


def _model(body: object) -> str:
    return repr(body.get("model")) if isinstance(body, dict) else "-"
