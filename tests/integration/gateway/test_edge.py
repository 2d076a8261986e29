"""The rendered configurations in the real programs: checked by them, and runs, events and WebSockets through them."""

import base64
import hashlib
import http.client
import os
import shutil
import socket
import subprocess

import pytest

from nexus.cli import main

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = base64.b64encode(hashlib.sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
ENVOY = shutil.which("envoy") or os.environ.get("ENVOY", "")
PROGRAMS = {"nginx": shutil.which("nginx"), "haproxy": shutil.which("haproxy"), "envoy": ENVOY if os.path.exists(ENVOY) else None}


async def echo_socket(server, request, reader, writer):
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
        % ACCEPT
    )
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    return False


@pytest.fixture(params=list(PROGRAMS))
def behind(request, bare_node, small, tmp_path):
    """A gateway behind one of the programs; gives node, worker and the edge's port."""
    name, program = request.param, PROGRAMS[request.param]
    if program is None:
        pytest.skip(f"{name} is not installed")
    node, port = bare_node, small.free_port()
    worker = node.worker("a", ws=echo_socket)
    node.control.entries["deployment/acme/hello/production"] = small.deployment_entry(worker)
    node.start(NEXUS_ALLOWED_HOSTS="agents.test")
    made = tmp_path / f"{name}.yaml"
    code = main.run(
        ["edge", "render", name, "--server-name", "agents.test", "--listen", str(port), "--upstream", f"127.0.0.1:{node.port}",
         "-o", str(made)]
    )  # fmt: skip
    assert code == 0
    check, run = commands(name, program, made, tmp_path)
    checked = subprocess.run(check, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stderr
    child = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        node.wait_for(lambda: child.poll() is None and answers(port))
        yield node, worker, port
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(10)


def commands(name, program, made, folder):
    if name == "haproxy":
        return [program, "-c", "-f", str(made)], [program, "-db", "-f", str(made)]
    if name == "envoy":
        options = ["-c", str(made), "--log-level", "error", "--disable-hot-restart", "--concurrency", "1"]
        return [program, "--mode", "validate", *options], [program, *options]
    whole = folder / "nginx.conf"
    temporary = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;" if os.geteuid() == 0 else ""
    whole.write_text(
        f"{user} daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log;\nevents {{}}\n"
        f"http {{ access_log off; {temporary}\ninclude {made};\n}}\n"
    )
    options = ["-c", str(whole), "-p", str(folder), "-e", str(folder / "log")]
    return [program, "-t", *options], [program, *options]


def answers(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health", headers={"Host": "agents.test"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def test_runs_events_and_websockets_pass_as_without_it(behind, small):
    node, worker, port = behind
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    for _ in range(3):
        headers = {"Host": "agents.test", "Authorization": f"Bearer {node.key}", "Nexus-Session-Id": "s1"}
        connection.request("POST", "/agents/hello/run", b'{"input": "x"}', headers)
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("nexus-session-id")) == (200, "s1")
        answer.read()
    connection.close()
    with socket.create_connection(("127.0.0.1", port), timeout=15) as client:
        client.sendall(
            b"POST /agents/hello/stream HTTP/1.1\r\nHost: agents.test\r\nAuthorization: Bearer %b\r\nx-do: events\r\n"
            b"Content-Length: 2\r\n\r\n{}" % node.key.encode()
        )
        assert b"run.completed" not in small.read_until(client, b"run.started"), "the first event came before the gate was opened"
        node.open_gate(worker, "gate")
        small.read_until(client, b"run.completed")
    with socket.create_connection(("127.0.0.1", port), timeout=15) as client:
        client.sendall(
            b"GET /agents/hello/ws HTTP/1.1\r\nHost: agents.test\r\nAuthorization: Bearer %b\r\nx-do: ws\r\n"
            b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n"
            % (node.key.encode(), KEY)
        )
        assert small.read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        client.sendall(b"hello")
        assert small.read_until(client, b"hello") == b"hello"


def test_a_client_that_leaves_the_edge_ends_the_run(behind, small):
    node, worker, port = behind
    with socket.create_connection(("127.0.0.1", port), timeout=15) as client:
        client.sendall(
            b"POST /agents/hello/stream HTTP/1.1\r\nHost: agents.test\r\nAuthorization: Bearer %b\r\nx-do: events\r\n"
            b"Content-Length: 2\r\n\r\n{}" % node.key.encode()
        )
        small.read_until(client, b"run.started")
    worker.closed.get(timeout=15)


def test_a_lost_run_is_not_sent_again(behind):
    node, worker, port = behind

    async def vanish(server, request, reader, writer):
        return False

    worker.does["vanish"] = vanish
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    headers = {"Host": "agents.test", "Authorization": f"Bearer {node.key}", "x-do": "vanish"}
    connection.request("POST", "/agents/hello/run", b"{}", headers)
    assert connection.getresponse().status == 502
    connection.close()
    assert worker.seen.qsize() == 1


def test_an_unknown_proxy_is_an_error_that_names_the_known(capsys):
    assert main.run(["edge", "render", "caddy", "--server-name", "a.example"]) != 0
    assert "nginx, envoy, haproxy" in capsys.readouterr().err.replace("\n", " ")
