"""Traces as document 1 shows them: the author's own span arrives at a collector, under the run's span, under the caller's."""

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import start_host, until, write_agent

CODE = """
from nexus.ai.agents import Agent
from opentelemetry import trace

class MyAgent(Agent):
    async def process(self, input: str):
        tracer = trace.get_tracer(__name__)
        with tracer.start_as_current_span("process_input"):
            return input.upper()

agent = MyAgent()
"""
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OTLP/HTTP receiver (JSON): its address, and every span that arrived with its resource's attributes."""
    spans: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in json.loads(body)["resourceSpans"]:
                about = {entry["key"]: entry["value"].get("stringValue") for entry in resource["resource"]["attributes"]}
                for scope in resource["scopeSpans"]:
                    spans.extend({**span, "about": about} for span in scope["spans"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_the_authors_span_arrives_under_the_runs_trace(tmp_path: Path, collector: tuple[str, list[dict[str, Any]]]) -> None:
    endpoint, spans = collector
    host = start_host(tmp_path / "home", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, NEXUS_EGRESS_ALLOW="127.0.0.1/32")
    try:
        folder = write_agent(tmp_path, "traced", CODE)
        host.ok("ai", "agent", "deploy", "traced", "--env", "development", cwd=folder)
        status, _ = host.run("traced", "hello", traceparent=f"00-{TRACE}-{PARENT}-01")
        assert status == 200

        def both() -> dict[str, dict[str, Any]] | None:
            mine = {span["name"]: span for span in spans if span["traceId"] == TRACE}
            return mine if "process_input" in mine and len(mine) >= 2 else None

        mine = until(both, what="the spans")
        author = mine.pop("process_input")
        (run,) = mine.values()
        assert author["parentSpanId"] == run["spanId"]
        assert run["parentSpanId"] == PARENT
        assert "traced" in author["about"].values()
    finally:
        host.cli("down", timeout=60)
