"""`nexus audit …`: export the trail of model calls, and prove that nobody changed it."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from nexus.cli import connect, screen
from nexus.cli.agent.logs import parse_since
from nexus.cli.options import Json
from nexus.core import errors

_HELP = "Export and verify the trail of model calls."


def register(app: typer.Typer) -> None:
    group = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help=_HELP)
    group.command("list")(list_records)
    group.command("export")(export)
    group.command("verify")(verify)
    app.add_typer(group, name="audit")


Since = Annotated[str | None, typer.Option("--since", help="From 10m, 1h, 2d ago, or from a time such as 2026-11-20T06:00.")]
Until = Annotated[str | None, typer.Option("--until", help="Up to then, written like --since.")]
Agent = Annotated[str | None, typer.Option("--agent", help="Only this agent's.")]
Content = Annotated[bool, typer.Option("--content", help="With what was kept of the calls' text.")]


def list_records(
    since: Since = None,
    until: Until = None,
    agent: Agent = None,
    run: Annotated[str | None, typer.Option("--run", help="Only this run's.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500, help="At most so many.")] = 50,
    content: Content = False,
    as_json: Json = False,
) -> None:
    """Show model calls: who, what for, how much, how it ended."""
    with connect.open_client() as host:
        found = host.audit.list(since=_at(since), until=_at(until), agent=agent, run=run, limit=limit, content=content)
    if as_json:
        screen.write_json(found)
        return
    screen.table(
        ("NO", "AT", "AGENT", "CALLER", "MODEL", "PROVIDER", "IN", "OUT", "OUTCOME", "STATUS"),
        [_row(each) for each in found],
        empty="no model calls in this time",
    )


def export(
    since: Since = None,
    until: Until = None,
    agent: Agent = None,
    form: Annotated[str, typer.Option("--format", help="jsonl or csv.")] = "jsonl",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file that must not exist yet; else printed.")] = None,
    content: Content = False,
) -> None:
    """Write the records out, one a line."""
    if form not in ("jsonl", "csv"):
        raise errors.Invalid(
            f"there is no format {form[:20]!r}", code="usage.invalid", next_step="--format jsonl or --format csv"
        )
    with (
        connect.open_client() as host,
        host.audit.export(form=form, since=_at(since), until=_at(until), agent=agent, content=content) as pages,
    ):
        if output is None:
            for page in pages:
                sys.stdout.buffer.write(page)
            sys.stdout.buffer.flush()
        else:
            _write_new(output, pages)


def verify(
    file: Annotated[Path | None, typer.Option("--file", help="A JSON lines export, verified here without a host.")] = None,
    filtered: Annotated[bool, typer.Option("--filtered", help="The export left records out: do not look for gaps.")] = False,
    as_json: Json = False,
) -> None:
    """Follow the chain to the first record that was altered, removed or put in. Exit code 6 when there is one."""
    if file is not None:
        verdict = _follow(file, whole=not filtered)
    else:
        with connect.open_client() as host:
            verdict = host.audit.verify()
    fault = verdict.get("fault")
    if fault is None:
        screen.give(
            verdict, as_json=as_json, text=f"intact: {verdict['verified']} records, the last with hash {verdict['hash'][:16]}…"
        )
        return
    raise errors.Conflict(
        f"the audit trail was tampered with: record {fault['seq']}: {fault['what']}",
        code="audit.tampered",
        cause=f"{verdict['verified']} records before it are intact",
        next_step="keep the database as it is, and compare it with an export or a backup from before",
        extra={"verdict": verdict},
    )


def _follow(file: Path, *, whole: bool) -> dict[str, Any]:
    from nexus.audit import chain

    with file.open("r", encoding="utf-8") as lines:
        at, count, fault = chain.follow(_exported(lines), whole=whole)
    verdict: dict[str, Any] = {"intact": fault is None, "verified": count, "last": at.seq, "hash": at.hash.hex()}
    return verdict if fault is None else verdict | {"fault": {"seq": fault.seq, "what": fault.what}}


def _exported(lines: Iterable[str]) -> Iterator[Any]:
    from nexus.audit import chain

    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            yield chain.Exported(
                seq=int(value["seq"]),
                tenant=str(value["tenant"]),
                text=json.dumps(value["record"], separators=(",", ":")),
                previous=bytes.fromhex(value["previous"]),
                hash=bytes.fromhex(value["hash"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise errors.Invalid(
                f"line {number} is no line of an export",
                code="audit.export_invalid",
                cause=str(error)[:200],
                next_step="verify a file that `nexus audit export --format jsonl` wrote",
            ) from None


def _write_new(path: Path, pages: Iterable[bytes]) -> None:
    """The file appears whole or not at all."""
    draft = path.with_name(f".{path.name}.part")
    if path.exists():
        raise errors.Conflict(f"{path} exists", code="file.exists", next_step="choose another name, or remove it")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for page in pages:
                file.write(page)
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def _at(value: str | None) -> float | None:
    return None if value is None else parse_since(value, time.time())


def _row(each: dict[str, Any]) -> tuple[Any, ...]:
    record = each.get("record") or {}
    names = ("agent", "principal", "model", "provider", "input_tokens", "output_tokens", "outcome", "status")
    return (each.get("seq"), screen.moment(record.get("started_at")), *(record.get(name) for name in names))
