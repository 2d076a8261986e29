"""What a gateway refuses on the wire, and that nothing of it reaches a worker."""

import json

import pytest

LENGTH = b"Content-Length: 5\r\n"
WEBSOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
SMUGGLED = b"POST /agents/hello/run HTTP/1.1\r\nHost: localhost\r\n\r\n"


def request(node, *lines, body=b"", line=b"POST /agents/hello/run HTTP/1.1", host=b"Host: localhost\r\n"):
    key = f"Authorization: Bearer {node.key}\r\n".encode()
    return line + b"\r\n" + host + key + b"".join(lines) + b"\r\n" + body


MALFORMED = {
    "CL.TE": ((LENGTH, b"Transfer-Encoding: chunked\r\n"), b"0\r\n\r\n" + SMUGGLED),
    "TE.CL": ((b"Transfer-Encoding: chunked\r\n", LENGTH), b"0\r\n\r\n" + SMUGGLED),
    "two lengths": ((LENGTH, b"Content-Length: 6\r\n"), b"abcdef"),
    "two equal lengths": ((LENGTH, LENGTH), b"abcde"),
    "list of lengths": ((b"Content-Length: 5, 5\r\n",), b"abcde"),
    "signed length": ((b"Content-Length: +5\r\n",), b"abcde"),
    "hexadecimal length": ((b"Content-Length: 0x5\r\n",), b"abcde"),
    "negative length": ((b"Content-Length: -1\r\n",), b""),
    "huge length": ((b"Content-Length: 99999999999999999999\r\n",), b""),
    "xchunked": ((b"Transfer-Encoding: xchunked\r\n",), b"0\r\n\r\n"),
    "gzip, chunked": ((b"Transfer-Encoding: gzip, chunked\r\n",), b"0\r\n\r\n"),
    "two codings": ((b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",), b"0\r\n\r\n"),
    "identity": ((b"Transfer-Encoding: identity\r\n",), b"abc"),
    "space before colon": ((b"Transfer-Encoding : chunked\r\n",), b"0\r\n\r\n"),
    "folded header": ((b"X-A: 1\r\n 2\r\n",), b""),
    "folded coding": ((b"Transfer-Encoding:\r\n chunked\r\n",), b"0\r\n\r\n"),
    "bare LF": ((b"X-A: 1\nTransfer-Encoding: chunked\r\n",), b"0\r\n\r\n"),
    "bare CR": ((b"X-A: 1\rX-B: 2\r\n",), b""),
    "NUL in a value": ((b"X-A: 1\x002\r\n",), b""),
    "chunk size with 0x": ((b"Transfer-Encoding: chunked\r\n",), b"0x5\r\nabcde\r\n0\r\n\r\n"),
    "chunk size signed": ((b"Transfer-Encoding: chunked\r\n",), b"+5\r\nabcde\r\n0\r\n\r\n"),
    "chunk without CR": ((b"Transfer-Encoding: chunked\r\n",), b"5\nabcde\r\n0\r\n\r\n"),
    "chunk longer than said": ((b"Transfer-Encoding: chunked\r\n",), b"3\r\nabcde\r\n0\r\n\r\n"),
    "chunk extension with LF": ((b"Transfer-Encoding: chunked\r\n",), b"5;a=\n\r\nabcde\r\n0\r\n\r\n"),
    "two hosts": ((b"Host: localhost\r\n",), b""),
    "two keys": ((b"Authorization: Bearer x\r\n",), b""),
    "two sessions": ((b"Nexus-Session-Id: a\r\nNexus-Session-Id: b\r\n",), b""),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_get_400_and_the_connection_closed(node, name):
    worker = node.workers[0]
    before = worker.seen.qsize()
    lines, body = MALFORMED[name]
    answer = node.raw(request(node, *lines, body=body))
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close" in answer
    problem = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert problem["code"] == "request.malformed"
    assert worker.seen.qsize() == before


@pytest.mark.parametrize(
    "start",
    [
        b"GET http://localhost/health HTTP/1.1", b"GET /health HTTP/0.9", b"GET /health HTTP/2.0", b"GET /health HTTP/1.2",
        b"GET  HTTP/1.1", b"GET health HTTP/1.1", b"GET /he\xffalth HTTP/1.1", b"BREW /health HTTP/1.1", b"GET /a b HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0",
    ],
)  # fmt: skip
def test_strange_request_lines_are_refused(node, start):
    answer = node.raw(request(node, line=start))
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:100]


@pytest.mark.parametrize(
    "host", [b"Host: a/b\r\n", b"Host: a?b\r\n", b"Host: a#b\r\n", b"Host: a@b\r\n", b"Host: \r\n", b"", b"Host: a b\r\n"]
)
def test_strange_hosts_are_refused(node, host):
    answer = node.raw(request(node, host=host, line=b"GET /health HTTP/1.1"))
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:100]


@pytest.mark.parametrize(
    "lines",
    [
        [b"X-Big: " + b"a" * 70_000 + b"\r\n"],
        [b"X-%d: a\r\n" % number for number in range(101)],
        [b"X-%d: %b\r\n" % (number, b"a" * 1000) for number in range(80)],
    ],
)
def test_oversized_heads_are_431(node, lines):
    assert node.raw(request(node, *lines)).startswith(b"HTTP/1.1 431 ")


def test_a_head_that_never_ends_is_431_and_not_kept(node):
    with node.connect() as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        sent, answer = 0, b""
        try:
            while sent < 1 << 20:
                client.sendall(b"a" * 4096)
                sent += 4096
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", 501),
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n", 400),
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", 400),
        (WEBSOCKET, 405),
        (WEBSOCKET + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", 400),
        (WEBSOCKET.replace(b"websocket", b"websocket, h2c"), 501),
        (WEBSOCKET + b"Content-Length: 3\r\n", 400),
    ],
)
def test_switching_protocols_is_refused_clearly_and_what_follows_is_never_read_as_a_request(node, lines, status):
    answer = node.raw(request(node, lines, line=b"GET /agents/hello/run HTTP/1.1", body=SMUGGLED))
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_connect_is_refused(node):
    assert node.raw(b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith((b"HTTP/1.1 501 ", b"HTTP/1.1 400 "))


def test_a_body_said_to_be_too_large_is_413_at_once(node):
    with node.connect() as client:
        client.sendall(request(node, b"Content-Length: 200000000\r\n"))
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body.too_large" in answer


def test_a_body_of_200_mb_in_chunks_is_413_and_memory_stays_flat(node):
    child = node.processes[0]
    worker = node.workers[0]
    before = worker.seen.qsize()
    with node.connect() as client:
        client.sendall(request(node, b"Transfer-Encoding: chunked\r\n"))
        part = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        sent = 0
        try:
            while sent < 200_000_000:
                client.sendall(part)
                sent += 65536
            client.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert resident_mib(child.pid) < 60
    assert worker.seen.qsize() == before


def test_pipelined_requests_are_answered_in_order_up_to_the_bad_one(node):
    good = request(node, LENGTH, b"x-n: 1\r\n", body=b"first")
    second = request(node, b"Content-Length: 6\r\n", body=b"second")
    bad = request(node, LENGTH, b"Transfer-Encoding: chunked\r\n", body=b"0\r\n\r\n")
    answer = node.raw(good + second + bad + good)
    assert [answer.count(b"HTTP/1.1 200 "), answer.count(b"HTTP/1.1 400 "), answer.count(b"HTTP/1.1 ")] == [2, 1, 3]
    assert answer.index(b"first") < answer.index(b"second") < answer.index(b"request.malformed")


def test_many_pipelined_requests_and_one_byte_at_a_time(node):
    one = request(node, LENGTH, body=b"abcde")
    last = request(node, LENGTH, b"Connection: close\r\n", body=b"abcde")
    assert node.raw(one * 99 + last).count(b"HTTP/1.1 200 ") == 100
    with node.connect() as client:
        for byte in last:
            client.sendall(bytes([byte]))
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_what_follows_connection_close_is_not_a_request(node):
    answer = node.raw(request(node, LENGTH, b"Connection: close\r\n", body=b"abcde") + SMUGGLED)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_trailers_are_ignored(node):
    worker = node.workers[0]
    body = b"5\r\nabcde\r\n0\r\nNexus-Tenant: victim\r\nX-Late: 99\r\n\r\n"
    while not worker.seen.empty():
        worker.seen.get_nowait()
    answer = node.raw(
        request(node, b"Transfer-Encoding: chunked\r\n", body=body)
        + request(node, LENGTH, b"Connection: close\r\n", body=b"12345")
    )
    assert answer.count(b"HTTP/1.1 200 ") == 2
    first = worker.seen.get(timeout=5)
    assert (first.body, first.all("nexus-tenant")) == (b"abcde", ["acme"])
    assert worker.seen.get(timeout=5).body == b"12345"


def test_a_client_that_asks_first_is_told_to_go_on(node):
    with node.connect() as client:
        client.sendall(request(node, LENGTH, b"Expect: 100-continue\r\nConnection: close\r\n"))
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abcde")
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    with node.connect() as client:
        client.sendall(request(node, b"Content-Length: 2000000\r\nExpect: 100-continue\r\n"))
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_http_1_0_is_answered_and_closed(node):
    answer = node.raw(request(node, LENGTH, body=b"abcde", line=b"POST /agents/hello/run HTTP/1.0"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"Transfer-Encoding" not in answer


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def test_the_socket_is_still_serving_after_all_this(node):
    assert node.ask("POST", "/agents/hello/run", {"input": 1}).status == 200
    assert node.ask("GET", "/health").json["in_flight"] == 0
