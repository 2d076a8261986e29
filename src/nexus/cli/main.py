"""`nexus`: the table of commands, and the one place where an error becomes a message and an exit code."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import typer

import nexus
from nexus.cli import exits
from nexus.cli.lazy import Entry, LazyGroup
from nexus.core import errors


class Root(LazyGroup):
    table: ClassVar[Mapping[str, Entry]] = {
        "up": Entry("nexus.cli.host", "Start the host on this machine.", "Host"),
        "down": Entry("nexus.cli.host", "Stop the host, its agents and its database.", "Host"),
        "status": Entry("nexus.cli.host", "Show the host's processes and deployments.", "Host"),
        "doctor": Entry("nexus.cli.host", "Check what this machine can do, and how to mend what it cannot.", "Host"),
        "ai": Entry("nexus.cli.agent.group", "Write, deploy, run and watch agents (nexus ai agent …).", "Agents"),
        "schedules": Entry("nexus.cli.schedules", "Submit tasks by the clock.", "Agents"),
        "triggers": Entry("nexus.cli.triggers", "Submit tasks by webhooks and queue messages.", "Agents"),
        "models": Entry("nexus.cli.models", "Models: fetch, list, try, route, and what they cost.", "Agents"),
        "login": Entry("nexus.cli.login", "Remember the address and key of a host.", "Access"),
        "logout": Entry("nexus.cli.login", "Forget the address and key of `nexus login`.", "Access"),
        "whoami": Entry("nexus.cli.login", "Show which host and key the other commands use.", "Access"),
        "keys": Entry("nexus.cli.access", "Create, list and revoke API keys.", "Access"),
        "tenants": Entry("nexus.cli.access", "Create and list tenants.", "Access"),
        "audit": Entry("nexus.cli.audit", "Export and verify the trail of model calls.", "Access"),
        "edge": Entry("nexus.cli.edge", "Run behind nginx, Envoy or HAProxy.", "Host"),
        "dev": Entry("nexus.cli.dev_tools", "Tools for developing Nexus itself.", "More"),
        "version": Entry("nexus.cli.version", "Print the version of Nexus.", "More"),
    }


_EPILOG = (
    "Exit codes: " + ", ".join(f"{code} {kind.replace('_', ' ')}" for kind, code in exits.CODES.items()) + ", 130 interrupted."
)
app = typer.Typer(
    cls=Root,
    name="nexus",
    epilog=_EPILOG,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(nexus.__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run AI agents in production: isolated, durable, streamed and metered, on a laptop or a cluster."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(given))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. `NEXUS_DEBUG=1` shows the traceback of an error."""
    as_json = "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
    try:
        command = typer.main.get_command(app)
        code = command.main(args=list(arguments), prog_name="nexus", standalone_mode=not as_json)
    except SystemExit as done:
        code = done.code
    except errors.NexusError as error:
        return _fail(error, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        return exits.INTERRUPTED
    except typer.TyperException as error:
        wrong = errors.Invalid(error.format_message(), code="usage.invalid", next_step="nexus --help")
        return _fail(wrong, as_json=as_json)
    except Exception as error:  # noqa: BLE001 - a defect is shown like any other error, with its traceback on demand
        return _fail(_defect(error), as_json=as_json)
    return code if isinstance(code, int) else 0 if code is None else 1


def _fail(error: errors.NexusError, *, as_json: bool) -> int:
    from nexus.cli import screen

    if os.environ.get("NEXUS_DEBUG") == "1":
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    try:
        screen.show_error(error, as_json=as_json)
    except BrokenPipeError:
        _silence()
    return exits.code_of(error)


def _defect(error: Exception) -> errors.NexusError:
    if isinstance(error, OSError):
        wrapped: errors.NexusError = errors.Invalid(
            f"{error.strerror or 'the system refused'}: {error.filename}" if error.filename else str(error),
            code="system.refused",
            cause=type(error).__name__,
            next_step="check the path and its permissions",
        )
    else:
        wrapped = errors.Internal(
            "the command failed in a way it should not",
            cause=f"{type(error).__name__}: {error}",
            next_step="run it again with NEXUS_DEBUG=1 and report what it shows",
        )
    wrapped.__cause__ = error
    return wrapped


def _silence() -> None:
    """Whoever read our output has left; nothing more may be written to it, not even when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
