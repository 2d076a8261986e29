"""ASGI apps without any framework, run by a real worker: routes, streams, start-up, failures, cancelling."""

import json
from typing import Any

import pytest
from tests.integration.worker.conftest import box, short, start  # noqa: F401 - fixtures

RAW = """
import json
begun = []
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        begun.append(1)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return
    asked = json.loads((await receive())["body"])
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    said = asked["input"]
    kind, pieces, status = b"application/json", [json.dumps({"asked": asked, "path": scope["path"], "begun": len(begun),
        "session": headers["nexus-session-id"]}).encode()], 200
    if said == "stream":
        kind = b"text/event-stream"
        pieces = [b'data: "Hel"\\n\\nda', b'ta: "lo"\\n\\n', b'data: {"note": 1}\\n\\n']
    elif said == "text":
        kind, pieces = b"text/plain; charset=utf-8", ["gr\\u00fcn".encode()]
    elif said == "fail":
        status, pieces = 503, [b'{"detail": "no model"}']
    elif said == "broken":
        kind, pieces = b"text/event-stream", [b'data: {"error": "lost", "error_type": "KeyError", "message": "m"}\\n\\n']
    elif said == "raise":
        raise ValueError("by itself")
    await send({"type": "http.response.start", "status": status, "headers": [(b"Content-Type", kind)]})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    if said == "wait":
        await receive()
"""


async def test_json_text_and_failures(start: Any) -> None:  # noqa: F811
    worker = await start(RAW, entrypoint="agent:app")
    for _ in range(2):
        answer = await worker.run("hi", session="s-1")
        assert answer.output == {"asked": {"input": "hi"}, "path": "/", "begun": 1, "session": "s-1"}
    assert (await worker.run({"input": "text", "more": 1})).output == "grün"
    failed = await worker.run("fail")
    assert failed.json["code"] == "agent.failed"
    assert 'answered 503: {"detail": "no model"}' in failed.json["cause"]
    assert "KeyError: lost" in (await worker.run("broken")).json["cause"]
    assert "ValueError: by itself" in (await worker.run("raise")).json["cause"]
    assert (await worker.call("GET", "/status")).json["adapter"] == "asgi"


async def test_server_sent_events_stream(start: Any) -> None:  # noqa: F811
    worker = await start(RAW, entrypoint="agent:app")
    events = await worker.events("stream")
    assert [(kind, data) for _, kind, data in events[1:-1]] == [
        ("message.delta", {"text": "Hel"}),
        ("message.delta", {"text": "lo"}),
        ("custom", {"name": "output", "data": {"note": 1}}),
    ]
    assert events[-1][2]["output"] == "Hello"


async def test_a_stopped_run_leaves_the_app_serving(start: Any) -> None:  # noqa: F811
    worker = await start(RAW, entrypoint="agent:app", NEXUS_RUN_TIMEOUT_S="0.3")
    assert (await worker.run("wait")).json["code"] == "run.timeout"
    assert (await worker.run("hi")).status == 200


ROUTED = """
class Route:
    def __init__(self, path, *methods):
        self.path, self.methods = path, set(methods)
class App:
    routes = [{routes}]
    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            raise NotImplementedError
        body = (await receive())["body"]
        await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}})
        await send({{"type": "http.response.body", "body": b'{{"output": [' + body + b', "' + scope["path"].encode() + b'"]}}'}})
app = App()
"""


@pytest.mark.parametrize(
    ("routes", "path", "body"),
    [
        ("Route('/invocations', 'POST'), Route('/ping', 'GET')", "/invocations", {"prompt": "hi"}),
        ("Route('/other', 'POST'), Route('/run', 'POST')", "/run", {"input": "hi", "context": {}}),
        ("Route('/talk', 'POST'), Route('/x/{id}', 'POST')", "/talk", {"input": "hi"}),
        ("Route('/responses', 'POST')", "/responses", {"input": "hi", "stream": False}),
    ],
)
async def test_the_route_that_takes_runs(start: Any, routes: str, path: str, body: dict[str, Any]) -> None:  # noqa: F811
    worker = await start(ROUTED.format(routes=routes), entrypoint="agent:app")
    output = (await worker.run("hi")).output
    assert (output if path == "/run" else output["output"]) == [body, path]


PINGED = """
import asyncio
class Route:
    def __init__(self, path, method):
        self.path, self.methods = path, {method}
class App:
    routes = [Route("/invocations", "POST"), Route("/ping", "GET")]
    ping = b'{"status": "Healthy"}'
    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            raise NotImplementedError
        if scope["path"] == "/ping":
            if self.ping == b"hang":
                await asyncio.sleep(1000)
            body = self.ping
        else:
            import json
            self.ping, body = json.loads((await receive())["body"])["prompt"].encode(), b"{}"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})
app = App()
"""


async def test_background_work_is_what_the_apps_ping_says(start: Any) -> None:  # noqa: F811
    worker = await start(PINGED, entrypoint="agent:app", NEXUS_GRACE_S="0.2")
    assert (await worker.call("GET", "/health")).json["background"] is False
    for said, busy in (
        ('{"status": "HealthyBusy"}', True),
        ("hang", False),
        ("garbage", False),
        ('{"status": "HealthyBusy"}', True),
    ):
        assert (await worker.run(said)).status == 200
        status = (await worker.call("GET", "/status")).json
        assert (status["background"], status["active_runs"]) == (busy, int(busy))
    assert await worker.stop() == 0


async def test_a_websocket_that_no_app_takes_is_refused(start: Any) -> None:  # noqa: F811
    worker = await start(PINGED, entrypoint="agent:app")
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "x" * 22 + "==",
    }
    answer = await worker.call("GET", "/ws", headers=headers)
    assert answer.status == 404
    assert (await worker.run("{}")).status == 200


async def test_a_file_that_starts_a_server_is_served(start: Any) -> None:  # noqa: F811
    code = RAW + "\nimport uvicorn\nuvicorn.run(app, port=1)\nafter = 1\n"
    worker = await start(code, entrypoint="agent:app")
    assert (await worker.run("hi", session="s")).output["session"] == "s"
    assert any("starts a server when it is imported" in message for message in worker.messages())


async def test_an_app_without_such_a_route_is_refused(start: Any) -> None:  # noqa: F811
    problem = await start.fails(ROUTED.format(routes="Route('/a', 'POST'), Route('/b', 'POST')"), entrypoint="agent:app")
    assert problem["code"] == "entrypoint.no_route"
    assert "/a, /b" in json.dumps(problem)
