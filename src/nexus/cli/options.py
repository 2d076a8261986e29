"""Options that several commands share, so that they are spelled and explained alike."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
Agent = Annotated[str, typer.Argument(help="Name of the agent.", show_default=False)]
Environment = Annotated[str | None, typer.Option("--env", "-e", help="development, staging or production.", show_default=False)]
