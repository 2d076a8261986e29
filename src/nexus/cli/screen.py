"""Everything the commands print: answers on standard output, progress and errors on standard error.

Text that comes from a host or an agent is a stranger's: its control characters are shown, not obeyed, and it is never markup.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nexus.core import errors
from nexus.wire import problem

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PHASE_STYLES = {
    "ready": "green", "active": "green", "completed": "green", "failed": "red", "unhealthy": "red", "cancelled": "yellow",
    "rolling": "yellow", "starting": "yellow", "building": "yellow", "pending": "yellow", "running": "cyan",
}  # fmt: skip


def clean(value: object) -> str:
    """Text that cannot move the cursor, set the title or reorder what is read: `\\x1b` instead of an escape."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(value))


def styled(value: object, style: str = "") -> Text:
    return Text(clean(value), style=style)


def phase(value: object) -> Text:
    return styled(value, _PHASE_STYLES.get(str(value), ""))


def to_user() -> Console:
    """Standard error: progress, notes, errors."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def to_output() -> Console:
    """Standard output. In a pipe or file tables are as wide as they need to be, so that no cell is folded."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 250
    return Console(highlight=False, markup=False, soft_wrap=True, width=width)


def note(text: str, style: str = "dim") -> None:
    to_user().print(Text(clean(text), style=style))


def write(text: str, *, end: str = "\n") -> None:
    """Plain text to standard output, at once."""
    sys.stdout.write(clean(text) + end)
    sys.stdout.flush()


def write_json(value: object, *, indent: int | None = 2) -> None:
    sys.stdout.write(json.dumps(value, indent=indent, default=str) + "\n")
    sys.stdout.flush()


def give(value: object, *, as_json: bool, text: str) -> None:
    """A command's answer in the form that was asked for."""
    if as_json:
        write_json(value)
    else:
        write(text)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Rows to standard output; `empty` is noted when there are none."""
    listed = [[cell if isinstance(cell, Text) else styled("-" if cell in (None, "") else cell) for cell in row] for row in rows]
    if not listed:
        note(empty)
        return
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in listed:
        grid.add_row(*row)
    to_output().print(grid)


def show_error(error: errors.NexusError, *, as_json: bool) -> None:
    """What failed, where, why, the last log lines and what to do next. As JSON it goes to standard output."""
    if as_json:
        write_json({"error": problem.render(error)})
        return
    console = to_user()
    console.print(Text.assemble(("error: ", "bold red"), clean(error.message)))
    facts: Mapping[str, object] = {"phase": error.phase, "cause": error.cause}
    for name, value in facts.items():
        if value:
            console.print(Text.assemble((f"  {name}: ", "bold"), clean(value)))
    if error.log_tail:
        console.print(Text("  last log lines:", style="bold"))
        for line in error.log_tail[-20:]:
            console.print(Text("    " + clean(line), style="dim"))
    if error.retry_after_s:
        console.print(Text.assemble(("  try again in: ", "bold"), f"{error.retry_after_s:g} s"))
    if error.next_step:
        console.print(Text.assemble(("  next: ", "bold green"), clean(error.next_step)))
    console.print(Text(f"  ({error.code})", style="dim"))


def size(value: object) -> str:
    """Bytes as people read them: `48 MiB`."""
    if not isinstance(value, int | float) or value <= 0:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return "-"


def ago(at: object, now: float | None = None) -> str:
    """How long ago: `3 m`, `2 h`, `5 d`."""
    if not isinstance(at, int | float):
        return "-"
    passed = max(0.0, (time.time() if now is None else now) - at)
    for limit, divisor, unit in ((60, 1, "s"), (3600, 60, "m"), (86400, 3600, "h")):
        if passed < limit:
            return f"{passed / divisor:.0f} {unit}"
    return f"{passed / 86400:.0f} d"


def moment(at: object) -> str:
    """A time as the clock on the wall shows it here: `2026-11-20 06:15:09`."""
    if not isinstance(at, int | float):
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def is_interactive() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def as_text(value: Any) -> str:
    """An agent's output: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)
