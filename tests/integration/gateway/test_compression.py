"""gzip and zstd both ways through a real gateway."""

import gzip
import json
import socket
import zlib

import pytest
from backports import zstd


async def large(server, request, reader, writer):
    body = json.dumps({"output": "word " * 20_000}).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await writer.drain()
    return True


@pytest.fixture(scope="module")
def node(stage, small, tmp_path_factory):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(prefix="nx-gw-", dir="/tmp") as folder:
        one = small.Node(stage, Path(folder) / "home")
        worker = one.worker("a", large=large)
        one.control.entries["deployment/acme/hello/production"] = small.deployment_entry(worker)
        one.control.entries["deployment/acme/squeezed/production"] = small.deployment_entry(
            worker, id="dep_2", options={"compression": "gzip"}
        )
        one.control.entries["deployment/acme/plain/production"] = small.deployment_entry(
            worker, id="dep_3", options={"compression": "none"}
        )
        one.control.start()
        one.start()
        yield one
        one.close()


def ask(node, body=b"{}", *, path="/agents/hello/run", **headers):
    return node.ask("POST", path, body, headers=headers)


GZIP = {"Accept-Encoding": "gzip, deflate"}
EXPAND = {"gzip": gzip.decompress, "zstd": zstd.decompress}


@pytest.mark.parametrize(("asked", "coded"), [("gzip, deflate", "gzip"), ("gzip, deflate, br, zstd", "zstd")])
def test_a_large_answer_is_compressed_for_those_who_ask(node, asked, coded):
    for _ in range(3):  # the long way first, then the short one
        plain, packed = ask(node, **{"x-do": "large"}), ask(node, **{"x-do": "large", "Accept-Encoding": asked})
        assert plain.header("content-encoding") is None
        assert packed.header("content-encoding") == coded
        assert packed.header("vary") == "Accept-Encoding"
        assert packed.header("content-length") is None
        assert len(packed.body) < len(plain.body) / 50
        assert EXPAND[coded](packed.body) == plain.body
    assert ask(node, path="/agents/plain/run", **{"x-do": "large"}, **GZIP).header("content-encoding") is None


def test_small_answers_stay_as_they_are(node):
    for _ in range(3):
        assert ask(node, **GZIP).header("content-encoding") is None


def test_the_agent_is_not_asked_for_codings(node):
    ask(node, **GZIP)
    worker = node.workers[0]
    while not worker.seen.empty():
        assert worker.seen.get().header("accept-encoding") is None


@pytest.mark.parametrize(("agent", "coded"), [("hello", False), ("squeezed", True)])
def test_events_pass_at_once_compressed_or_not(node, small, agent, coded):
    worker = node.workers[0]
    gate = f"gate-{agent}"
    with node.connect() as client:
        client.sendall(
            b"POST /agents/%b/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\nx-do: events\r\nx-gate: %b\r\n"
            b"Accept-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}" % (agent.encode(), node.key.encode(), gate.encode())
        )
        head, _, rest = small.read_until(client, b"\r\n\r\n").partition(b"\r\n\r\n")
        assert (b"Content-Encoding: gzip" in head) is coded
        text = _take(client, rest, coded, until=b"run.started")
        assert b"run.completed" not in text
        node.open_gate(worker, gate)


def _take(client: socket.socket, rest: bytes, coded: bool, *, until: bytes) -> bytes:
    """Read chunks until the expanded text holds `until`."""
    reader, text = zlib.decompressobj(31), b""
    while True:
        while b"\r\n" not in rest:
            rest += client.recv(65536)
        size, _, rest = rest.partition(b"\r\n")
        while len(rest) < int(size, 16) + 2:
            rest += client.recv(65536)
        chunk, rest = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        text += reader.decompress(chunk) if coded else chunk
        if until in text:
            return text


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("coded", EXPAND)
def test_a_compressed_body_reaches_the_agent_expanded(node, chunked, coded):
    value = {"input": "x" * 50_000}
    packed = {"gzip": gzip.compress, "zstd": zstd.compress}[coded](json.dumps(value).encode())
    if chunked:
        framed = b"".join(b"%x\r\n%b\r\n" % (len(packed[n : n + 9]), packed[n : n + 9]) for n in range(0, len(packed), 9))
        lines, body = b"Transfer-Encoding: chunked\r\n", framed + b"0\r\n\r\n"
    else:
        lines, body = b"Content-Length: %d\r\n" % len(packed), packed
    answer = node.raw(
        b"POST /agents/hello/run HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\nContent-Encoding: %b\r\n"
        b"Connection: close\r\n%b\r\n" % (node.key.encode(), coded.encode(), lines) + body
    )  # fmt: skip
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert json.loads(json.loads(answer.partition(b"\r\n\r\n")[2])["output"]) == value


@pytest.mark.parametrize(
    ("body", "coding_", "status", "code"),
    [
        (gzip.compress(b"\0" * (200 << 20)), "gzip", 413, "body.too_large"),
        (zstd.compress(b"\0" * (200 << 20)), "zstd", 413, "body.too_large"),
        (b"not gzip", "gzip", 400, "body.coding_invalid"),
        (gzip.compress(b"{}")[:-4], "gzip", 400, "body.coding_invalid"),
        (b"{}", "br", 415, "body.coding_unsupported"),
        (b"{}", "gzip, gzip", 415, "body.coding_unsupported"),
    ],
    ids=["bomb", "zstd bomb", "plain", "cut", "brotli", "twice"],
)
def test_a_body_that_cannot_be_expanded_is_refused(node, body, coding_, status, code):
    answer = ask(node, body, **{"Content-Encoding": coding_})
    assert (answer.status, answer.json["code"]) == (status, code)
    if status == 415:
        assert answer.header("accept-encoding") == "zstd, gzip"
