"""Watching a deployment until it serves or fails: a live display on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from nexus import client
from nexus.cli import screen
from nexus.core import errors
from nexus.wire import problem


class Progress:
    """The phases gone through so far and the one in hand. `step` begins one, `detail` says more about it."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._done: list[Text] = []
        self._name = ""
        self._detail = ""
        self._began = clock()
        self._spinner = Spinner("dots")
        self._live: Live | None = None
        self._said = ""

    def step(self, name: str, detail: str = "") -> None:
        if name != self._name:
            self._finish("✓", "green")
            self._name, self._began = name, self._clock()
        self.detail(detail)

    def detail(self, detail: str) -> None:
        self._detail = screen.clean(detail)
        line = f"{self._name}: {self._detail}" if self._detail else self._name
        if self._live is None and line != self._said:
            self._said = line
            self._console.print(Text(line))

    def end(self, *, ok: bool) -> None:
        self._finish("✓" if ok else "✗", "green" if ok else "red")
        self._name = ""

    def _finish(self, mark: str, style: str) -> None:
        if self._name:
            passed = f" {self._clock() - self._began:.1f} s"
            self._done.append(Text.assemble((mark, style), f" {self._name}", (passed, "dim"), (f"  {self._detail}", "dim")))
        self._detail = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._done
        if self._name:
            self._spinner.update(text=Text.assemble(self._name, (f"  {self._detail}", "dim")))
            yield self._spinner

    @contextmanager
    def shown(self, *, quiet: bool) -> Iterator[None]:
        """Show the progress while the context lasts; `quiet` shows none of it."""
        if quiet:
            self._console = Console(quiet=True)
        if quiet or not screen.is_interactive():
            yield
            return
        with Live(self, console=self._console, refresh_per_second=12) as self._live:
            yield


_NAMES = {
    "pending": "waiting",
    "building": "building environment",
    "starting": "starting",
    "health": "checking health",
    "routing": "routing",
    "ready": "routing",
    "rolling": "rolling out",
    "active": "serving",
}


def watch(host: client.Client, deployment: client.Answer, progress: Progress, *, until_waiting: bool = True) -> client.Answer:
    """Follow a deployment to its end and return it as it then is; a failed one raises its problem.

    `until_waiting`: also return when nothing more comes before somebody promotes or aborts.
    """
    last: Any = None
    for event in host.agents.rollout(deployment["id"], revision=deployment.get("revision")):
        last = event
        phase = str(event.get("phase", ""))
        words = event.get("detail") or event.get("step") or event.get("message") or ""
        if event.get("done"):
            break
        progress.step(_NAMES.get(phase, phase), str(words))
        if event.get("waits") and until_waiting:
            progress.step("waiting for promotion", str(words))
            progress.end(ok=True)
            return host.agents.deployment(deployment["id"])
    failure = last.get("problem") if last is not None else None
    if failure:
        progress.end(ok=False)
        raise _failure(failure, deployment["agent"])
    ended = last.get("deployment") if last is not None else None
    view = client.Answer(ended) if ended else host.agents.deployment(deployment["id"])
    if view.get("problem") and view.get("phase") == "failed":
        progress.end(ok=False)
        raise _failure(view["problem"], deployment["agent"])
    progress.step("serving", f"{view.get('ready')} of {view.get('replicas')} ready")
    progress.end(ok=True)
    return view


def _failure(told: dict[str, Any], agent: str) -> errors.NexusError:
    error = problem.parse(told if "kind" in told else {"kind": "agent_failed", **told})
    if not error.next_step:
        error.next_step = f"nexus ai agent logs {agent}"
    return error
