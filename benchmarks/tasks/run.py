"""The task queue beside procrastinate and DBOS, on one PostgreSQL that really commits: `make bench-tasks`.

    make bench-tasks BENCH_ARGS="--only queue,latency,events,readers,host --rounds 3 --tasks 8000 --million --alone"

Every part prints its table; with `--rounds` ours and the others take turns and medians are shown. Nothing is asserted.
"""

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.tasks import peers, queue_alone, server, through_host

from nexus.stores.postgres import migrate

PARTS = ("queue", "latency", "events", "readers", "host")
READERS, FOLLOWED = 2000, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, by commas: {', '.join(PARTS)}")
    parser.add_argument("--alone", action="store_true", help="do not install and run procrastinate and DBOS")
    parser.add_argument("--million", action="store_true", help="once more with a million finished tasks in the tables")
    given = parser.parse_args()
    parts = set(given.only.split(","))
    with tempfile.TemporaryDirectory(prefix="nxbench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        place = folder / "pg"
        place.mkdir()
        if parts - {"host"}:
            with server.postgres(place) as url:
                _beside(url, given, parts)
    if "host" in parts:
        through_host.main([f"--tasks={given.tasks}"])


def _beside(url: str, given: argparse.Namespace, parts: set[str]) -> None:
    others: dict[str, Any] = {}
    if not given.alone and parts & {"queue", "latency"}:
        others = {peer.name: (peer, python) for peer in peers.PEERS if (python := peers.install(peer)) is not None}
    found: dict[str, list[dict[str, Any]]] = {}
    mine = server.create_database(url, "ours")
    asyncio.run(migrate.upgrade(mine))
    costs: dict[str, tuple[float, float]] = {}
    for number in range(given.rounds):
        figures, cost = _ours(mine, given, parts)
        costs |= cost
        found.setdefault("nexus", []).append(figures)
        for name, (peer, python) in others.items():
            database = server.create_database(url, f"{name}_{number}")
            count, clients = given.tasks, queue_alone.CLIENTS
            if figured := peers.measure(peer, python, database, count=count, clients=clients, batch=given.batch):
                found.setdefault(name, []).append(_flat(figured))
    _print(found, costs)
    if "readers" in parts:
        _print_readers(mine)
    if given.million:
        _million(mine, given, parts)


def _ours(url: str, given: argparse.Namespace, parts: set[str]) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    figures: dict[str, Any] = {}
    costs: dict[str, tuple[float, float]] = {}
    if "queue" in parts:
        bench = asyncio.run(queue_alone.measure(url, given.tasks, given.batch))
        figures |= bench.figures
        costs |= bench.cost
    if "latency" in parts:
        figures |= _flat({"latencies": asyncio.run(queue_alone.latency(url, seconds=3, elsewhere=False))})
        other = _flat({"latencies": asyncio.run(queue_alone.latency(url, seconds=3, elsewhere=True))})
        figures |= {f"{what}, other node": value for what, value in other.items()}
    if "events" in parts:
        bench = asyncio.run(queue_alone.events(url, count=100_000))
        figures |= bench.figures
        costs |= bench.cost
    return figures, costs


def _flat(figures: dict[str, Any]) -> dict[str, float]:
    latencies = figures.pop("latencies", None)
    if latencies:
        figures["accepted to begun, p50 (ms)"] = statistics.median(latencies)
        figures["accepted to begun, p99 (ms)"] = latencies[int(len(latencies) * 0.99)]
    return figures


def _median(rounds: list[dict[str, Any]], what: str) -> float | None:
    values = [each[what] for each in rounds if what in each]
    return statistics.median(values) if values else None


def _print(found: dict[str, list[dict[str, Any]]], costs: dict[str, tuple[float, float]]) -> None:
    others = [name for name in found if name != "nexus"]
    print(f"{'a second, or ms':44}{'nexus':>9}{'CPU us ours+PG':>16}" + "".join(f"{name:>15}{'ratio':>7}" for name in others))
    for what in found["nexus"][0]:
        mine = _median(found["nexus"], what) or 0.0
        cost = "{:.0f}+{:.0f}".format(*costs[what]) if what in costs else "-"
        line = f"{what:44}{_number(mine):>9}{cost:>16}"
        for name in others:
            theirs = _median(found[name], what)
            ratio = "-" if not theirs or not mine else f"{theirs / mine if '(ms)' in what else mine / theirs:.1f}"
            line += f"{'-' if theirs is None else _number(theirs):>15}{ratio:>7}"
        print(line)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def _print_readers(url: str) -> None:
    figures = asyncio.run(queue_alone.readers(url, count=READERS, tasks=FOLLOWED, rounds=50))
    print("live readers: " + ", ".join(f"{what} {_number(value)}" for what, value in figures.items()))


def _million(url: str, given: argparse.Namespace, parts: set[str]) -> None:
    """Rates, and CPU us of one, without and with a million finished tasks; CPU tells more where other work goes on."""
    empty = [_ours(url, given, parts) for _ in range(given.rounds)]
    queue_alone.fill(url, 1_000_000)
    full = [_ours(url, given, parts) for _ in range(given.rounds)]
    print(
        f"{'with a million finished tasks':44}{'before':>9}{'after':>9}{'change':>9}{'CPU before':>12}{'after':>8}{'change':>9}"
    )
    for what in empty[0][0]:
        rates = [_median([figures for figures, _ in each], what) or 0.0 for each in (empty, full)]
        line = f"{what:44}{_number(rates[0]):>9}{_number(rates[1]):>9}{_change(*rates):>9}"
        if what in empty[0][1]:
            costs = [statistics.median(sum(cost[what]) for _, cost in each) for each in (empty, full)]
            line += f"{costs[0]:>12.0f}{costs[1]:>8.0f}{_change(*costs):>9}"
        print(line)


def _change(before: float, after: float) -> str:
    return f"{(after / before - 1) * 100:+.0f} %" if before else "-"


if __name__ == "__main__":
    main()
