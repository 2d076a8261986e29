"""WebSockets, TLS and the handover of the listening sockets, on real sockets and processes."""

import base64
import hashlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = base64.b64encode(hashlib.sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
HANDSHAKE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n"


async def echo_socket(server, request, reader, writer):
    """Switch, then send back whatever comes until the other side closes."""
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {ACCEPT}"]
    if request.header("sec-websocket-protocol"):
        lines.append("Sec-WebSocket-Protocol: chat")
    writer.write(("\r\n".join([*lines, "Set-Cookie: a=b", "", ""])).encode())
    while data := await reader.read(65536):
        if data == b"bye":
            break
        writer.write(b"<" + data + b">")
        await writer.drain()
    server.closed.put("socket")
    return False


def answers_with(data):
    async def deed(server, request, reader, writer):
        writer.write(data)
        await writer.drain()
        return True

    return deed


@pytest.fixture
def hello(bare_node, small):
    node = bare_node
    worker = node.worker("a", ws=echo_socket)
    node.control.entries["deployment/acme/hello/production"] = small.deployment_entry(worker)
    return node, worker


def handshake(node, *, extra=b"", key=None, path=b"/agents/hello/ws", do=b"ws"):
    secret = (node.key if key is None else key).encode()
    return (
        b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\nx-do: %b\r\n" % (path, secret, do)
        + HANDSHAKE + extra + b"\r\n"
    )  # fmt: skip


def read_head(client, small):
    head, _, rest = small.read_until(client, b"\r\n\r\n").partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), rest


# WebSocket


def test_a_websocket_passes_both_ways_and_is_recorded_when_it_closes(hello, small):
    node, worker = hello
    node.start()
    with node.connect() as client:
        client.sendall(handshake(node, extra=b"Sec-WebSocket-Protocol: chat, other\r\nNexus-Session-Id: s1\r\n"))
        lines, _ = read_head(client, small)
        assert lines[0] == "HTTP/1.1 101 Switching Protocols"
        assert f"Sec-WebSocket-Accept: {ACCEPT}" in lines
        assert "sec-websocket-protocol: chat" in lines
        assert "Nexus-Session-Id: s1" in lines
        assert not any(line.lower().startswith("set-cookie") for line in lines)
        for message in (b"\x81\x05hello", b"x" * 300_000):
            client.sendall(message)
            got = b""
            while got.replace(b"<", b"").replace(b">", b"") != message:
                got += client.recv(1 << 20)
        client.sendall(b"bye")
        assert small.read_all(client) == b""
    seen = worker.seen.get(timeout=10)
    assert seen.line == "GET /ws HTTP/1.1"
    assert seen.header("authorization") is None
    assert seen.header("nexus-session-id") == "s1"
    assert seen.all("upgrade") == ["websocket"]
    record = node.control.next_record(session_id="s1")
    assert (record["mode"], record["outcome"], record["status"]) == ("stream", "completed", 101)
    assert record["bytes_out"] >= 300_000


def test_bytes_sent_with_the_handshake_reach_the_agent_after_it(hello, small):
    node, _ = hello
    node.start()
    with node.connect() as client:
        client.sendall(handshake(node) + b"early")
        _, rest = read_head(client, small)
        assert rest + (b"" if rest else client.recv(100)) == b"<early>"


def test_a_client_that_leaves_ends_the_agents_side(hello, small):
    node, worker = hello
    node.start()
    with node.connect() as client:
        client.sendall(handshake(node))
        read_head(client, small)
    assert worker.closed.get(timeout=10) == "socket"
    node.wait_for(lambda: node.door(0, "GET", "/health").json["in_flight"] == 0)


def test_a_websocket_needs_a_key_an_allowed_origin_and_the_right_path(hello, small):
    node, worker = hello
    node.start()
    for sent, status in (
        (handshake(node, key="nxk_wrong"), b"401"),
        (handshake(node, extra=b"Origin: http://evil.example\r\n"), b"403"),
        (handshake(node, path=b"/agents/none/ws"), b"404"),
        (handshake(node, path=b"/health"), b"501"),
        (handshake(node).replace(HANDSHAKE, b""), b"426"),
    ):
        with node.connect() as client:
            client.sendall(sent)
            lines, _ = read_head(client, small)
            assert lines[0].split()[1].encode() == status, lines
    assert worker.seen.empty()


SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
ACCEPTED = b"Sec-WebSocket-Accept: %b\r\n" % ACCEPT.encode()


@pytest.mark.parametrize(
    "lines",
    [
        b"Upgrade: websocket\r\nSec-WebSocket-Accept: bad\r\n",
        b"Upgrade: h2c\r\n" + ACCEPTED,
        ACCEPTED,
        b"Upgrade: websocket\r\n" + ACCEPTED + ACCEPTED,
        b"Upgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n" + ACCEPTED,
        b"Upgrade: websocket\r\nSec-WebSocket-Protocol: unasked\r\n" + ACCEPTED,
    ],
)
def test_a_false_handshake_of_an_agent_is_502(hello, small, lines):
    node, worker = hello
    worker.does["ws"] = answers_with(SWITCHED + lines + b"\r\n")
    node.start()
    with node.connect() as client:
        client.sendall(handshake(node))
        lines, _ = read_head(client, small)
        assert lines[0].startswith("HTTP/1.1 502 ")


def test_an_agent_without_a_websocket_says_so_itself(hello, small):
    node, worker = hello
    worker.does["ws"] = answers_with(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")
    node.start()
    answer = node.raw(handshake(node) + b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.count(b"HTTP/1.1 ") == 1, "what came behind the handshake is no request"


# TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return folder


def test_with_a_certificate_the_port_speaks_tls_and_nothing_else(hello, small, certificate):
    node, _ = hello
    node.start(NEXUS_TLS_CERT=str(certificate / "cert.pem"), NEXUS_TLS_KEY=str(certificate / "key.pem"))
    context = ssl.create_default_context(cafile=certificate / "cert.pem")
    context.set_alpn_protocols(["h2", "http/1.1"])
    connection = http.client.HTTPSConnection("127.0.0.1", node.port, timeout=10, context=context)
    for _ in range(3):
        connection.request("POST", "/agents/hello/run", b"{}", {"Authorization": f"Bearer {node.key}"})
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
    assert connection.sock.selected_alpn_protocol() == "http/1.1"
    assert connection.sock.version() in ("TLSv1.2", "TLSv1.3")
    connection.close()
    with pytest.raises((http.client.BadStatusLine, ConnectionError)):
        node.ask("POST", "/agents/hello/run", {})
    assert node.door(0, "GET", "/health").status == 200


def test_a_body_too_large_over_tls_is_answered_before_the_close(hello, certificate):
    node, _ = hello
    node.start(NEXUS_TLS_CERT=str(certificate / "cert.pem"), NEXUS_TLS_KEY=str(certificate / "key.pem"))
    context = ssl.create_default_context(cafile=certificate / "cert.pem")
    with node.connect() as raw, context.wrap_socket(raw, server_hostname="127.0.0.1") as client:
        client.sendall(
            b"POST /agents/hello/run HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\nContent-Length: 99999999\r\n\r\n"
            % node.key.encode()
        )
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_half_a_tls_configuration_is_said_plainly(hello, certificate):
    node, _ = hello
    child = node.start(wait=False, NEXUS_TLS_CERT=str(certificate / "cert.pem"))
    assert child.wait(10) == 2
    assert "NEXUS_TLS_KEY is not set" in (node.home.root / "gateway-0.log").read_text()
    child = node.start(wait=False, NEXUS_TLS_CERT=str(certificate / "cert.pem"), NEXUS_TLS_KEY="/nowhere")
    assert child.wait(10) == 2


# the handover


class Load(threading.Thread):
    """Clients on kept-alive and on fresh connections; `wrong` holds whatever was not a 200."""

    def __init__(self, node, *, keep):
        super().__init__(daemon=True)
        self.node, self.keep = node, keep
        self.done = threading.Event()
        self.count, self.wrong = 0, []

    def run(self):
        connection = None
        while not self.done.is_set():
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=10)
                connection.request("POST", "/agents/hello/run", b"{}", {"Authorization": f"Bearer {self.node.key}"})
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.wrong.append(answer.status)
                self.count += 1
                if not self.keep or answer.will_close:
                    connection.close()
                    connection = None
            except Exception as error:
                self.wrong.append(repr(error))
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()


def test_a_gateway_that_is_replaced_under_load_fails_no_request(hello, small):
    node, worker = hello
    first = node.start()
    with node.connect() as streaming:
        streaming.sendall(
            b"POST /agents/hello/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\nx-do: events\r\n"
            b"Content-Length: 2\r\n\r\n{}" % node.key.encode()
        )
        small.read_until(streaming, b"run.started")
        load = [Load(node, keep=keep) for keep in (True, True, False, False)]
        for one in load:
            one.start()
        node.wait_for(lambda: all(one.count > 20 for one in load))
        second = node.start(wait=False)
        node.wait_for(lambda: "serves in this one's place" in (node.home.root / "gateway-0.log").read_text())
        reached = [one.count for one in load]
        node.wait_for(lambda: all(one.count > before + 20 for one, before in zip(load, reached, strict=True)))
        for one in load:
            one.done.set()
        for one in load:
            one.join(10)
        assert [wrong for one in load for wrong in one.wrong] == []
        assert first.poll() is None, "it still has a stream to finish"
        node.open_gate(worker, "gate")
        assert b"run.completed" in small.read_until(streaming, b"run.completed")
    assert first.wait(15) == 0
    assert second.poll() is None
    assert node.door(0, "GET", "/health").status == 200
    assert node.ask("POST", "/agents/hello/run", {}).status == 200


def test_hangup_makes_a_gateway_replace_itself(hello):
    node, _ = hello
    first = node.start()
    first.send_signal(signal.SIGHUP)
    try:
        assert first.wait(15) == 0
        assert node.ask("POST", "/agents/hello/run", {}).status == 200
    finally:
        for line in (node.home.root / "gateway-0.log").read_text().splitlines():
            if "serves in this one's place" in line:
                os.kill(int(line.split("process ")[1].split()[0]), signal.SIGTERM)


def test_a_successor_that_dies_before_it_serves_changes_nothing(hello):
    node, _ = hello
    first = node.start()
    with socket.socket(socket.AF_UNIX) as half:
        half.connect(str(node.home.run / "handover-0.sock"))
        half.sendall(b"give\n")
        message, descriptors, _, _ = socket.recv_fds(half, 16, 2)
        assert message == b"here\n"
        for descriptor in descriptors:
            os.close(descriptor)
    node.wait_for(lambda: "before it served" in (node.home.root / "gateway-0.log").read_text())
    assert first.poll() is None
    assert node.ask("POST", "/agents/hello/run", {}).status == 200


def test_after_a_kill_the_next_one_binds_afresh(hello):
    node, _ = hello
    first = node.start()
    first.kill()
    first.wait(10)
    began = time.monotonic()
    node.start()
    assert node.ask("POST", "/agents/hello/run", {}).status == 200
    assert time.monotonic() - began < 10
