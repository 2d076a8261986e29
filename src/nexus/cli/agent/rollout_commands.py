"""`nexus ai agent promote`, `abort` and `rollout status|report`: a person's eye and word on a rollout."""

import time
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nexus import client
from nexus.cli import connect, screen
from nexus.cli.agent import rollout
from nexus.cli.options import Agent, Environment, Json

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Watch until it is done.")]
_LOOK_EVERY_S = 0.5
_BAR = 30
_OVER = ("active", "superseded", "failed")


def register(app: typer.Typer) -> None:
    app.command("promote")(promote)
    app.command("abort")(abort)
    group = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Watch a rollout, compare its versions.")
    group.command("status")(status)
    group.command("report")(report)
    app.add_typer(group, name="rollout")


def promote(
    agent: Agent,
    variant: Annotated[
        str | None, typer.Option("--variant", help="The winner of an A/B test; default: the first new one.")
    ] = None,
    environment: Environment = None,
    wait: Wait = True,
    as_json: Json = False,
) -> None:
    """Make the new version of a rollout the only one: switch colours, end a canary or an A/B test."""
    with connect.open_client() as host:
        started = host.agents.promote(agent, environment=environment, variant=variant)
        progress = rollout.Progress(screen.to_user())
        with progress.shown(quiet=as_json):
            view = rollout.watch(host, started, progress, until_waiting=False) if wait else started
    version = view.get("active_version") if wait else view.get("version")
    text = f"{agent} {'serves' if wait else 'goes to'} version {version} in {view.get('environment')}"
    screen.give(view.view, as_json=as_json, text=text)


def abort(agent: Agent, environment: Environment = None, as_json: Json = False) -> None:
    """Give a rollout up; after a blue-green switch, switch back while the old colour stands by."""
    with connect.open_client() as host:
        view = host.agents.abort(agent, environment=environment)
    text = f"{agent} in {view.get('environment')}: all traffic to version {view.get('active_version') or '-'}"
    screen.give(view.view, as_json=as_json, text=text)


def status(
    agent: Agent,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until it is over.")] = False,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Show where a rollout is: who gets how much of the traffic, and how it goes."""
    with connect.open_client() as host:
        view = host.agents.rollout_status(agent, environment=environment)
        if watch:
            view = _watch(host, view, as_json=as_json)
    if as_json:
        screen.write_json(view.view, indent=None if watch else 2)
    elif not watch or not screen.is_interactive():
        screen.to_output().print(picture(view.view, now=time.time()))


def _watch(host: client.Client, view: client.Answer, *, as_json: bool) -> client.Answer:
    """A live picture on a terminal; elsewhere a new one whenever something changed."""
    name, place = str(view["agent"]), str(view["environment"])
    if screen.is_interactive() and not as_json:
        with Live(console=screen.to_user(), refresh_per_second=4) as live:
            while True:
                live.update(picture(view.view, now=time.time()))
                if view.get("phase") in _OVER:
                    return view
                time.sleep(_LOOK_EVERY_S)
                view = host.agents.rollout_status(name, environment=place)
    shown: tuple[object, ...] = ()
    while view.get("phase") not in _OVER:
        key = (view.get("phase"), view.get("stage"), view.get("waiting"), [entry.get("weight") for entry in view["shares"]])
        if key != shown:
            shown = key
            if as_json:
                screen.write_json(view.view, indent=None)
            else:
                screen.to_output().print(picture(view.view, now=time.time()))
        time.sleep(_LOOK_EVERY_S)
        view = host.agents.rollout_status(name, environment=place)
    return view


def picture(view: dict[str, Any], *, now: float) -> RenderableType:
    """One look at a rollout: a head line, a bar for each revision, and what it waits for or how it ended."""
    head = Text.assemble(
        (screen.clean(f"{view['agent']} in {view['environment']}"), "bold"),
        f"  revision {view['revision']}, {screen.clean(view['strategy'])}  ",
        screen.phase(view["phase"]),
    )
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("VERSION", "ROLE", "TRAFFIC", "", "READY", "RUNS", "FAILED", "P50", "P95"):
        grid.add_column(column)
    for entry in view.get("shares") or ():
        weight = int(entry.get("weight") or 0)
        filled = round(weight * _BAR / 100)
        colour = "green" if entry.get("role") in ("stable", "active") else "yellow"
        bar = Text.assemble(("█" * filled, colour), ("·" * (_BAR - filled), "dim"))
        grid.add_row(
            screen.styled(entry.get("version")), screen.styled(entry.get("role")), bar, f"{weight} %",
            f"{entry.get('ready')}/{entry.get('wanted')}", str(entry.get("runs")),
            f"{entry.get('errors')} ({entry.get('error_rate', 0):.1%})", _time(entry, "p50_s"), _time(entry, "p95_s"),
        )  # fmt: skip
    return Group(head, grid, *_remarks(view, now))


def _remarks(view: dict[str, Any], now: float) -> list[Text]:
    remarks = []
    if stages := view.get("stages"):
        remarks.append(f"stage {view.get('stage')} of {len(stages)} ({', '.join(f'{step} %' for step in stages)})")
    if view.get("next_at"):
        remarks.append(f"the next decision comes in {max(0.0, view['next_at'] - now):.0f} s")
    if waiting := view.get("waiting"):
        remarks.append(f"waiting for {waiting}" + (": promote or abort it" if waiting == "promotion" else ""))
    for entry in view.get("shares") or ():
        if entry.get("draining"):
            count = entry.get("sessions")
            told = f"{count} session{'' if count == 1 else 's'}" if count is not None else "its sessions"
            remarks.append(f"version {entry.get('version')} is draining ({told}); they go on there")
    if view.get("standby_until"):
        remarks.append(f"the old version stands by for {max(0.0, view['standby_until'] - now):.0f} s: abort switches back")
    outcome, problem = view.get("outcome") or {}, view.get("problem") or {}
    if outcome.get("decision"):
        remarks.append(f"{outcome['decision']} by {outcome.get('by')}: {outcome.get('reason') or '-'}")
    elif problem:
        remarks.append(str(problem.get("detail")))
    return [Text(screen.clean(remark), style="dim") for remark in remarks]


def report(agent: Agent, environment: Environment = None, as_json: Json = False) -> None:
    """Compare the versions of a rollout: the difference of error rate and latency, with confidence intervals."""
    with connect.open_client() as host:
        view = host.agents.rollout_report(agent, environment=environment)
    if as_json:
        screen.write_json(view.view)
        return
    screen.write(
        f"{view['agent']} in {view['environment']}: {view['strategy']} of revision {view['revision']} ({view['phase']}), "
        f"since {screen.moment(view['since'])}; intervals hold with {view['confidence']:.0%} confidence"
    )
    screen.table(
        ("VARIANT", "VERSION", "WEIGHT", "RUNS", "FAILED", "P50", "P95", "ERRORS VS CONTROL", "LATENCY VS CONTROL", "VERDICT"),
        [
            (
                entry.get("name"), entry.get("version"), f"{entry.get('weight')} %", entry.get("runs"),
                f"{entry.get('errors')} ({entry.get('error_rate', 0):.1%})", _time(entry, "p50_s"), _time(entry, "p95_s"),
                _rates(entry.get("errors_vs_control")), _shift(entry.get("latency_vs_control")), entry.get("verdict"),
            )
            for entry in view["variants"]
        ],
        empty="no variants",
    )  # fmt: skip


def _rates(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    return f"{found['difference']:+.1%} [{found['low']:+.1%}, {found['high']:+.1%}] p={found['p']:.2g}"


def _shift(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    shift, low, high = (1000 * found[name] for name in ("shift_s", "low_s", "high_s"))
    return f"{shift:+.1f} ms [{low:+.1f}, {high:+.1f}] p={found['p']:.2g}"


def _time(entry: dict[str, Any], name: str) -> str:
    seconds = entry.get(name)
    if not isinstance(seconds, int | float) or not entry.get("runs"):
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
