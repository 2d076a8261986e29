"""`nexus triggers …`: tasks that are submitted by webhooks and by messages of a broker."""

from typing import Annotated, Any

import typer

from nexus.cli import connect, screen, standing
from nexus.cli.options import Agent, Environment, Json
from nexus.core import errors

Name = Annotated[str, typer.Argument(help="Name of the trigger.", show_default=False)]


def register(app: typer.Typer) -> None:
    kind = standing.Kind(
        noun="trigger",
        about="Tasks made by webhooks and queue messages.",
        create=create,
        columns=("TRIGGER", "AGENT", "ENVIRONMENT", "KIND", "STATE", "TASKS", "REFUSED", "LAST", "FROM"),
        row=_row,
        details=_details,
        does=lambda _: "takes messages",
        pause="Take no more messages for now.",
        resume="Take messages again.",
    )
    standing.register(app, kind)


def create(
    name: Name,
    agent: Agent,
    scheme: Annotated[str | None, typer.Option("--hook", help="A signed webhook: standard, github, stripe or hmac.")] = None,
    secret: Annotated[str | None, typer.Option("--secret", help="Its secret, when the sender makes it; - reads a line.")] = None,
    header: Annotated[str | None, typer.Option("--header", help="Header of the signature (hmac).")] = None,
    algorithm: Annotated[str | None, typer.Option("--algorithm", help="sha256, sha512 or sha1 (hmac).")] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="hex or base64 (hmac).")] = None,
    prefix: Annotated[str | None, typer.Option("--prefix", help="What stands before the signature (hmac): sha256=.")] = None,
    id_header: Annotated[str | None, typer.Option("--id-header", help="Header that tells deliveries apart (hmac).")] = None,
    broker: Annotated[
        str | None, typer.Option("--broker", help="Broker of a queue: amqp://, kafka://, nats:// or redis://; - reads a line.")
    ] = None,
    queue: Annotated[str | None, typer.Option("--queue", help="Queue, topic, subject or stream to read.")] = None,
    stream: Annotated[str | None, typer.Option("--stream", help="JetStream stream that holds the subject (NATS).")] = None,
    group: Annotated[str | None, typer.Option("--group", help="Consumer group.")] = None,
    reply: Annotated[str | None, typer.Option("--reply", help="Where results are published.")] = None,
    dead: Annotated[str | None, typer.Option("--dead", help="Where messages go that cannot become a task.")] = None,
    environment: Environment = None,
    priority: Annotated[int | None, typer.Option("--priority", "-p", help="Higher starts earlier (-1000 to 1000).")] = None,
    webhook: Annotated[str | None, typer.Option("--webhook", help="URL that receives each result.")] = None,
    as_json: Json = False,
) -> None:
    """Let a signed webhook, or the messages of a queue, submit tasks."""
    if (scheme is None) == (broker is None):
        raise errors.Invalid("give --hook or --broker", code="usage.invalid", next_step="nexus triggers create --help")
    hook = source = None
    if scheme is not None:
        hook = _given(
            scheme=scheme, secret=_line(secret), header=header, algorithm=algorithm, encoding=encoding, prefix=prefix,
            id_header=id_header,
        )  # fmt: skip
    else:
        source = _given(url=_line(broker), name=queue, stream=stream, group=group, reply=reply, dead=dead)
    task = _given(priority=priority, webhook=webhook)
    with connect.open_client() as host:
        made = host.triggers.create(name, agent, hook=hook, queue=source, environment=environment, task=task)
    if as_json:
        screen.write_json(made)
        return
    screen.write(f"{name} submits tasks of {agent}: {made['url']}")
    if made.get("secret"):
        screen.write(f"secret (shown only now): {made['secret']}")


def _row(each: standing.Entry) -> tuple[Any, ...]:
    first = (each.get("name"), each.get("agent"), each.get("environment"), each.get("kind"), _state(each))
    return (*first, each.get("taken"), each.get("refused"), screen.ago(each.get("last_at")), each.get("url"))


def _details(found: standing.Entry) -> list[tuple[str, Any]]:
    rows = [(key, found.get(key)) for key in ("agent", "environment", "kind", "url", "taken", "refused", "last_task_id")]
    rows += [("state", _state(found)), ("problem", found.get("problem"))]
    return [*rows, *(found.get("settings") or {}).items()]


def _state(trigger: standing.Entry) -> str:
    return "paused" if not trigger.get("active") else "failing" if trigger.get("problem") else "active"


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _line(value: str | None) -> str | None:
    """`-` keeps a secret out of the process list."""
    return typer.get_text_stream("stdin").readline().strip() if value == "-" else value
