"""What the box costs at the start: the same small program as a plain process, in bubblewrap (where installed) and in our box.

`.venv/bin/python benchmarks/box/run.py [-n 40]` prints medians in milliseconds, all measured in this one run and interleaved, so
that another program's noise falls on each alike. The ratio is what counts; the machine decides the rest.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nexus.drivers.process import box_launcher, cgroups, launcher, sandbox

PYTHON = os.path.realpath(sys.executable)
COMMAND = [PYTHON, "-I", "-S", "-c", "pass"]


def plain() -> None:
    subprocess.run(COMMAND, check=True)


def bubblewrap() -> None:
    prefix = str(Path(PYTHON).parents[1])
    tree = [
        "--ro-bind",
        "/usr",
        "/usr",
        "--ro-bind",
        "/lib",
        "/lib",
        "--ro-bind-try",
        "/lib64",
        "/lib64",
        "--ro-bind",
        prefix,
        prefix,
    ]
    subprocess.run(
        ["bwrap", "--unshare-all", "--share-net", *tree, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",
         "--", *COMMAND], check=True,
    )  # fmt: skip


class Boxes:
    """Our box, with and without control groups, from the supervisor's side: until the program's own exec, and until its end."""

    def __init__(self, folder: Path, layout: cgroups.Layout, output: int) -> None:
        self._launcher = box_launcher.BoxLauncher(layout)
        self.layers = self._launcher.look()
        for name in ("stage", "work"):
            (folder / name).mkdir(exist_ok=True)
        needed, links = sandbox.interpreter(Path(PYTHON), private=folder)
        self._wish = sandbox.Wish(
            stage=folder / "stage", folder=folder / "work", home=folder / "work", output=folder / "output", read=needed,
            write=[folder / "work"], links=links,
        )  # fmt: skip
        self._output = output
        self._count = 0
        self.entered: list[float] = []

    def __call__(self) -> None:
        self._count += 1
        began = time.perf_counter()
        running = self._launcher.launch(
            launcher.Plan(
                instance_id=f"bench-{os.getpid()}-{self._count}", command=COMMAND, environ={}, folder=Path("/"),
                output=self._output, memory_bytes=256 << 20, cpu_millis=None, wish=self._wish,
            )
        )  # fmt: skip
        self.entered.append((time.perf_counter() - began) * 1000)
        os.waitid(os.P_PID, running.handle.pid, os.WEXITED | os.WNOWAIT)
        self._running = running

    def tidy(self) -> None:
        """Outside of what is measured."""
        asyncio.run(self._running.close())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=40, help="starts of each kind")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nexus-bench-box-") as name:
        folder = Path(name)
        os.mkfifo(folder / "output")
        output = os.open(folder / "output", os.O_RDWR)
        layout = cgroups.detect("nexus-bench-box")
        box, grouped = Boxes(folder, cgroups.Layout(), output), Boxes(folder, layout, output)
        kinds: dict[str, Callable[[], None]] = {"plain process": plain, "box": box, "box in control groups": grouped}
        if shutil.which("bwrap"):
            kinds["bubblewrap (no filter, no user of its own)"] = bubblewrap
        taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(given.n):
            for kind, start in kinds.items():
                began = time.perf_counter()
                start()
                taken[kind].append((time.perf_counter() - began) * 1000)
                if isinstance(start, Boxes):
                    start.tidy()
        cgroups.release(layout)
        os.close(output)
    print(f"layers in force: {', '.join(sorted(box.layers.held))}; {given.n} starts each\n")
    print(f"{'from nothing to its end':<44} {'median':>8} {'p90':>8}   over plain")
    base = statistics.median(taken["plain process"])
    for kind, values in taken.items():
        middle, high = statistics.median(values), sorted(values)[int(len(values) * 0.9)]
        print(f"{kind:<44} {middle:>6.1f}ms {high:>6.1f}ms   {middle - base:>+6.1f}ms")
    for kind, boxes in (("box", box), ("box in control groups", grouped)):
        print(f"{kind + ', until the program runs':<44} {statistics.median(boxes.entered):>6.1f}ms")


if __name__ == "__main__":
    main()
