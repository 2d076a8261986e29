"""`nexus ai agent metrics`: the host's Prometheus metrics of one agent as a table."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import typer

from nexus.cli import connect, screen
from nexus.cli.options import Json

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+([-+0-9.eE]+|[-+]?Inf|NaN)(?:\s+-?\d+)?")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def register(app: typer.Typer) -> None:
    app.command("metrics")(metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    name: str
    labels: dict[str, str]
    value: float


def metrics(
    agent: Annotated[str | None, typer.Argument(help="Only this agent's.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show each bucket of the histograms too.")] = False,
    as_json: Json = False,
) -> None:
    """Show the metrics of an agent (or of all): requests, latency, tokens, errors, queue."""
    with connect.open_client() as host:
        samples = select(parse(host.host.metrics()), agent, every=every)
    if as_json:
        screen.write_json([{"name": one.name, "labels": one.labels, "value": one.value} for one in samples])
        return
    rows = [(one.name, _labels(one, hide_agent=agent is not None), f"{one.value:g}") for one in samples]
    screen.table(("METRIC", "LABELS", "VALUE"), rows, empty="nothing counted yet")


def _labels(sample: Sample, *, hide_agent: bool) -> str:
    return ", ".join(f"{name}={value}" for name, value in sample.labels.items() if not (hide_agent and name == "agent"))


def parse(text: str) -> list[Sample]:
    """Samples of Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    samples = []
    for line in text.splitlines():
        if line.startswith("#") or not (match := _SAMPLE.fullmatch(line.strip())):
            continue
        labels = {name: value.encode().decode("unicode_escape") for name, value in _LABEL.findall(match[2] or "")}
        samples.append(Sample(name=match[1], labels=labels, value=float(match[3])))
    return samples


def select(samples: Iterable[Sample], agent: str | None, *, every: bool) -> list[Sample]:
    """The agents' own metrics, without buckets and creation times unless `every`; latencies get their mean."""
    chosen = [one for one in samples if one.name.startswith("agent_") and agent in (None, one.labels.get("agent"))]
    if every:
        return chosen
    counts = {
        (one.name.removesuffix("_count"), *sorted(one.labels.items())): one.value for one in chosen if one.name.endswith("_count")
    }
    shown = []
    for one in chosen:
        if one.name.endswith(("_bucket", "_created", "_count")):
            continue
        if one.name.endswith("_sum"):
            name = one.name.removesuffix("_sum")
            count = counts.get((name, *sorted(one.labels.items())), 0)
            one = Sample(name=f"{name} (mean)", labels=one.labels, value=one.value / count if count else 0.0)
        shown.append(one)
    return shown
