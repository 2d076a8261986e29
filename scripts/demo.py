"""The main job, from nothing: start the host, deploy two agents, ask them about a document in every run mode. `make demo`.

Every step really happens, on the host of `NEXUS_HOME` (default ~/.nexus), and any step that fails ends the demo with an error.
"""

import argparse
import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import os
import queue
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import nexus
from nexus.core import errors
from nexus.kit import home as homes
from nexus.wire import runs

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "document"
PLAIN, GRAPH = "plain-reader", "langgraph-reader"
SESSION = "demo"
QUESTIONS = ("Who reviews the measures?", "Who replaced the drive belt?")
STREAMED = "Why did the compressor stop?"
DEFAULT_PORT = 8700
LOOPBACK = "127.0.0.1/32"
WEBHOOK_WAIT_S = 60.0
TASK_WAIT_S = 600.0


class DemoFailed(Exception):
    """A step did not do what it shows."""


@dataclass
class Demo:
    """What the steps share. `rows` become the table at the end: step, seconds, tokens."""

    console: Console
    quick: bool
    stop: bool
    home: homes.Home
    document: str
    rows: list[tuple[str, float, int | None]] = field(default_factory=list)
    started_host: bool = False

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[dict[str, int]]:
        """Show a step, time it and add it to the table; the caller puts `tokens` into what it gets."""
        self.console.rule(f"[bold]{len(self.rows) + 1}. {title}", align="left", style="dim")
        found: dict[str, int] = {}
        began = time.monotonic()
        yield found
        self.rows.append((title, time.monotonic() - began, found.get("tokens")))

    def say(self, text: str, style: str = "") -> None:
        self.console.print(text, style=style or None, markup=False, highlight=False)


def main() -> int:
    options = _parse()
    demo = Demo(
        console=Console(soft_wrap=True),
        quick=options.quick,
        stop=options.stop,
        home=homes.find_home(os.environ.get("NEXUS_HOME")),
        document=(FOLDER / "incident-report.txt").read_text(encoding="utf-8"),
    )
    if demo.quick:
        demo.document = "\n\n".join(demo.document.split("\n\n")[:4] + demo.document.split("\n\n")[-1:])
    try:
        _play(demo)
    except (errors.NexusError, DemoFailed, OSError) as error:
        demo.say(f"\nThe demo failed: {error}", "bold red")
        for name in ("code", "cause", "next_step"):
            if shown := getattr(error, name, None):
                demo.say(f"  {name}: {shown}")
        for line in getattr(error, "log_tail", ()):
            demo.say(f"    {line}", "dim")
        return 1
    except KeyboardInterrupt:
        demo.say("\nstopped; the host keeps running: nexus down stops it", "yellow")
        return 130
    finally:
        if options.stop and demo.started_host:
            _nexus("down")
            demo.say("the host that the demo started is stopped", "dim")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer questions and a shorter document")
    parser.add_argument("--stop", action="store_true", help="stop the host at the end, if the demo started it")
    return parser.parse_args()


def _play(demo: Demo) -> None:
    demo.say("Nexus Agent Hosting: two agents, one document, every way to run them", "bold cyan")
    with demo.step("Fetch the model"):
        _fetch_model(demo)
    with demo.step("Start the host"):
        _start_host(demo)
    for agent, kind in ((PLAIN, "plain Python"), (GRAPH, "LangGraph")):
        with demo.step(f"Deploy {agent} ({kind})"):
            _check(_nexus("ai", "agent", "deploy", "--path", str(FOLDER / agent), "--env", "development"), f"deploying {agent}")
    with nexus.Client() as client:
        for agent in (PLAIN, GRAPH):
            with demo.step(f"Ask {agent}") as cost:
                cost["tokens"] = _ask(demo, client, agent)
        with demo.step("Stream an answer as it is generated") as cost:
            cost["tokens"] = _stream(demo, client)
        with demo.step("Submit a longer job, watch it, receive its webhook") as cost:
            cost["tokens"] = _submit(demo, client)
        _close(demo, client)


def _fetch_model(demo: Demo) -> None:
    provider = next((name for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY") if os.environ.get(name)), None)
    if provider is not None:
        demo.say(f"{provider} is set, so the agents use that provider's model")
        return
    demo.say("no provider key in the environment, so a small local model answers: SmolLM2-135M on llama.cpp")
    demo.say("it is tiny: expect simple words and some mistakes", "dim")
    _check(_nexus("models", "pull", "smollm2"), "fetching the model")


def _start_host(demo: Demo) -> None:
    status = _nexus("status", "--json", quiet=True)
    if status.returncode == 0:
        demo.say(f"a host runs already: {json.loads(status.stdout)['origin']}")
        return
    arguments = ["up", "-d"]
    if not os.environ.get("NEXUS_PORT") and not _is_free(DEFAULT_PORT):
        demo.say(f"port {DEFAULT_PORT} is taken by another program; using a free one", "yellow")
        arguments += ["--port", "0"]
    allowed = ",".join(part for part in (os.environ.get("NEXUS_EGRESS_ALLOW"), LOOPBACK) if part)
    demo.say(f"the webhook of this demo goes to this machine, so the host may call {LOOPBACK}", "dim")
    _check(_nexus(*arguments, environment={"NEXUS_EGRESS_ALLOW": allowed}), "starting the host")
    demo.started_host = True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _ask(demo: Demo, client: nexus.Client, agent: str) -> int:
    tokens = 0
    for question in QUESTIONS[: 1 if demo.quick else None]:
        demo.say(f"Q  {question}", "bold")
        began = time.monotonic()
        result = client.agents.run(
            agent, question, context={"document": demo.document}, session_id=SESSION, environment="development"
        )
        took = time.monotonic() - began
        if not isinstance(result.output, str) or not result.output.strip():
            raise DemoFailed(f"{agent} gave no text but {result.output!r}")
        demo.say(f"A  {result.output.strip()}", "green")
        spent = _tokens(result.metadata, agent)
        demo.say(f"   {spent} tokens, {took * 1000:.0f} ms, version {result.version}", "dim")
        tokens += spent
    return tokens


def _tokens(metadata: Any, agent: str) -> int:
    spent = metadata.get("tokens_used")
    if not isinstance(spent, int) or spent <= 0:
        raise DemoFailed(f"the tokens of {agent} were not counted: {dict(metadata)}")
    return spent


def _stream(demo: Demo, client: nexus.Client) -> int:
    demo.say(f"Q  {STREAMED}", "bold")
    demo.console.print("A  ", end="", style="green")
    began = time.monotonic()
    pieces, first, metadata = 0, 0.0, {}
    with client.agents.stream(
        PLAIN, STREAMED, context={"document": demo.document}, session_id=SESSION, environment="development"
    ) as stream:
        for chunk in stream:
            if chunk.text:
                first = first or time.monotonic() - began
                pieces += 1
                demo.console.print(chunk.text, end="", style="green", markup=False, highlight=False)
            if chunk.event == runs.RUN_COMPLETED:
                metadata = dict(chunk.metadata)
    demo.say("")
    if pieces < 3:
        raise DemoFailed(f"the answer came in {pieces} pieces, which is no stream")
    spent = _tokens(metadata, PLAIN)
    demo.say(f"   {pieces} pieces, the first after {first * 1000:.0f} ms, {spent} tokens", "dim")
    return spent


def _submit(demo: Demo, client: nexus.Client) -> int:
    job = {"task": "summarise"}
    given: dict[str, Any] = {"context": {"document": demo.document}, "environment": "development"}
    with _receiver() as (url, deliveries):
        try:
            task = client.agents.submit(PLAIN, input=job, webhook=url, **given)
        except errors.Invalid as error:
            if demo.started_host:
                raise
            demo.say(f"the host that runs already does not send webhooks to this machine ({error.code})", "yellow")
            demo.say(f"start it with NEXUS_EGRESS_ALLOW={LOOPBACK} to see that too", "yellow")
            url, task = "", client.agents.submit(PLAIN, input=job, **given)
        demo.say(f"{task}")
        _watch(demo, client, task["task_id"])
        view = client.agents.wait(task["task_id"], timeout=TASK_WAIT_S).view
        if view["status"] != "completed":
            raise DemoFailed(f"the task ended {view['status']}: {view.get('error')}")
        demo.say(str(view["output"]).strip(), "green")
        if url:
            _verify(demo, client, deliveries, task["task_id"])
    return _tokens(view.get("metadata") or {}, PLAIN)


def _watch(demo: Demo, client: nexus.Client, task_id: str) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn())
    seen = 0
    with Progress(*columns, console=demo.console) as bars, client.agents.events(task_id) as events:
        bar = bars.add_task("waiting", total=100)
        for event in events:
            if event.event == runs.PROGRESS:
                seen += 1
                bars.update(bar, completed=event.data.get("percent", 0), description=str(event.data.get("message", "")))
    if not seen:
        raise DemoFailed("the job reported no progress")


@contextlib.contextmanager
def _receiver() -> Iterator[tuple[str, "queue.Queue[tuple[dict[str, str], bytes]]"]]:
    """A web server on this machine that takes webhooks."""
    deliveries: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue(maxsize=16)

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(204)
            self.end_headers()
            deliveries.put(({name.lower(): value for name, value in self.headers.items()}, body), timeout=5)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, name="webhook receiver", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/callback", deliveries
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def _verify(demo: Demo, client: nexus.Client, deliveries: "queue.Queue[tuple[dict[str, str], bytes]]", task_id: str) -> None:
    """Check the webhook the way a receiver should: Standard Webhooks, HMAC-SHA256 over `id.timestamp.body`."""
    try:
        headers, body = deliveries.get(timeout=WEBHOOK_WAIT_S)
    except queue.Empty:
        raise DemoFailed(f"no webhook came within {WEBHOOK_WAIT_S:.0f} s") from None
    key = base64.b64decode(_webhook_secret(client).removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    if not any(hmac.compare_digest(expected, given) for given in headers["webhook-signature"].split()):
        raise DemoFailed("the webhook's signature is wrong")
    message = json.loads(body)
    if message["data"]["task_id"] != task_id or message["data"]["status"] != "completed":
        raise DemoFailed(f"the webhook tells of something else: {message['data'].get('task_id')}")
    demo.say(f"webhook {headers['webhook-id']} arrived: {message['type']}, {len(body)} bytes, signature verified", "cyan")


def _webhook_secret(client: nexus.Client) -> str:
    import httpx2

    found = client.connection
    headers = {"authorization": f"Bearer {found.api_key}"}
    answer = httpx2.get(found.base_url + "/v1/webhooks/secret", headers=headers, timeout=30)
    answer.raise_for_status()
    return str(answer.json()["secret"])


def _close(demo: Demo, client: nexus.Client) -> None:
    table = Table(title="what it took", title_justify="left")
    for name, justify in (("step", "left"), ("time", "right"), ("tokens", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for title, seconds, tokens in demo.rows:
        table.add_row(title, f"{seconds:.2f} s", "" if tokens is None else str(tokens))
    total = sum(tokens or 0 for _, _, tokens in demo.rows)
    table.add_row("in all", f"{sum(seconds for _, seconds, _ in demo.rows):.2f} s", str(total), style="bold")
    demo.console.print(table)
    if demo.stop and demo.started_host:
        return
    prefix = f"NEXUS_HOME={shlex.quote(str(demo.home.root))} " if os.environ.get("NEXUS_HOME") else ""
    command = prefix + shlex.quote(os.path.relpath(Path(sys.executable).parent / "nexus"))
    demo.say(f"\nThe host runs at {client.base_url}. The session {SESSION!r} remembers the document, so ask it more:\n", "bold")
    key_file = shlex.quote(str(demo.home.admin_key))
    demo.say(
        f"curl -s {client.base_url}/agents/{PLAIN}/run -H 'Content-Type: application/json' -H 'Nexus-Session-Id: {SESSION}' \\\n"
        f'  -H "Authorization: Bearer $(cat {key_file})" -d \'{{"input": "What is the estimated loss?"}}\'\n'
    )
    for words in (
        f"ai agent stream {PLAIN} --session {SESSION} 'How many pallets had to be destroyed?'",
        f"ai agent logs {GRAPH} --follow",
        "ai agent init my-agent --template langgraph",
        "down     # stops the host and its agents; what was deployed is there again after `up`",
    ):
        demo.say(f"{command} {words}")


def _nexus(*arguments: str, quiet: bool = False, environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """The command line a user would type, with its own output shown as it comes."""
    command = [sys.executable, "-m", "nexus.cli.main", *arguments]
    pipe = subprocess.PIPE if quiet else None
    sys.stdout.flush()
    return subprocess.run(command, env={**os.environ, **(environment or {})}, stdout=pipe, stderr=pipe, text=True, check=False)


def _check(result: "subprocess.CompletedProcess[str]", what: str) -> None:
    if result.returncode != 0:
        raise DemoFailed(f"{what} ended with exit code {result.returncode} (see above)")


if __name__ == "__main__":
    sys.exit(main())
