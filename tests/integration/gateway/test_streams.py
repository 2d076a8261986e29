"""Bodies on their way: events at once, clients that leave, slow readers, bad answers, deadlines, drain."""

import signal
import socket

import pytest


def post(node, *lines, body=b"", path=b"/agents/hello/run"):
    key = f"Authorization: Bearer {node.key}\r\n".encode()
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + key + length + b"".join(lines) + b"\r\n" + body


def until(client, mark):
    data = b""
    while mark not in data:
        part = client.recv(65536)
        assert part, f"closed before {mark!r}: {data!r}"
        data += part
    return data


def test_an_event_arrives_before_the_next_is_sent(node):
    worker = node.workers[0]
    with node.connect() as client:
        client.sendall(post(node, b"x-do: events\r\nx-gate: ev1\r\nConnection: close\r\n", path=b"/agents/hello/stream"))
        first = until(client, b"run.started")
        assert b"Content-Type: text/event-stream" in first.title() or b"text/event-stream" in first
        assert b"run.completed" not in first
        node.open_gate(worker, "ev1")
        rest = until(client, b"0\r\n\r\n")
    assert b"event: run.completed" in rest


def test_the_stream_door_asks_the_worker_for_events(node):
    worker = emptied(node.workers[0])
    node.ask("POST", "/agents/hello/stream", {}, headers={"Accept": "application/json"})
    assert worker.seen.get(timeout=5).all("accept") == ["text/event-stream"]


@pytest.mark.parametrize(
    ("end", "outcome", "code"), [("run.completed", "completed", None), ("run.failed", "failed", "agent.failed")]
)
def test_how_a_stream_ended_is_recorded(node, end, outcome, code):
    node.open_gate(node.workers[0], "ev2")
    headers = {"x-do": "events", "x-gate": "ev2", "x-end": end}
    answer = node.ask("POST", "/agents/hello/stream", {}, headers=headers)
    record = node.control.next_record(id=answer.header("Nexus-Run-Id"))
    assert (record["mode"], record["outcome"], record.get("code")) == ("stream", outcome, code)


@pytest.mark.parametrize("deed", [b"hang", b"events"])
def test_a_client_that_leaves_cancels_the_run_at_once(node, deed):
    worker = emptied(node.workers[0])
    with node.connect() as client:
        client.sendall(post(node, b"x-do: " + deed + b"\r\nx-gate: never\r\n"))
        run = worker.seen.get(timeout=5).header("nexus-run-id")
        if deed == b"events":
            until(client, b"run.started")
    assert worker.closed.get(timeout=5) == run
    record = node.control.next_record(id=run)
    assert (record["outcome"], record["status"], record["code"]) == ("cancelled", 499, "run.cancelled")
    assert node.ask("GET", "/health").json["in_flight"] == 0


def test_a_client_that_leaves_is_noticed_though_it_has_pipelined_more(node):
    worker = emptied(node.workers[0])
    with node.connect() as client:
        client.sendall(post(node, b"x-do: hang\r\n") + post(node, body=b"later"))
        client.sendall(b"POST /half")
        assert worker.seen.get(timeout=5).header("x-do") == "hang"
    assert worker.closed.get(timeout=5)
    assert worker.seen.empty()


def test_a_slow_reader_is_not_read_ahead_for(bare_node, small):
    """The agent would send 256 MiB; the client reads nothing: the gateway stops the agent and stays small."""

    async def flood(server, request, reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 268435456\r\n\r\n")
        sent = 0
        while sent < 268435456:
            writer.write(b"x" * 65536)
            sent += 65536
            server.progress = sent
            await writer.drain()
        return True

    node = bare_node
    worker = node.worker("f", flood=flood)
    worker.progress = 0
    node.control.change({"deployment/acme/hello/production": small.deployment_entry(worker)})
    child = node.start()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.settimeout(10)
        client.connect(("127.0.0.1", node.port))
        client.sendall(post(node, b"x-do: flood\r\n"))
        begun = until(client, b"\r\n\r\n").partition(b"\r\n\r\n")[2]
        standing = [-1, -2]

        def stands():
            standing.append(worker.progress)
            return len(standing) > 30 and len(set(standing[-20:])) == 1

        node.wait_for(stands)
        assert 0 < worker.progress < 32 << 20
        assert resident_mib(child.pid) < 60
        total = len(begun)
        while total < 268435456:
            part = client.recv(1 << 20)
            assert part
            total += len(part)


def test_a_large_body_streams_through_intact(node):
    body = bytes(range(256)) * 3000
    answer = node.ask("POST", "/agents/hello/run", body)
    assert answer.json["output"].encode("latin-1") == body
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:1], body[1:70000], body[70000:])) + b"0\r\n\r\n"
    head = post(node, b"Connection: close\r\n").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with node.connect() as client:
        client.sendall(head + chunked)
        data = b""
        while part := client.recv(1 << 20):
            data += part
    assert data.startswith(b"HTTP/1.1 200 ")
    assert len(data) > len(body)


BAD_ANSWERS = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
    "folded": b"HTTP/1.1 200 OK\r\nX-A: 1\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "injected": b"HTTP/1.1 200 OK\r\nX-A: 1\rSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\nok",
    "switching unasked": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nzz",
    "1xx flood": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50,
    "1000 headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    "huge header": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100000 + b"\r\n\r\n",
    "odd coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nxx",
    "status 999": b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_bad_answers_of_an_agent_become_502(node, name):
    async def misbehave(server, request, reader, writer):
        writer.write(BAD_ANSWERS[name])
        await writer.drain()
        await reader.read(1)
        return False

    node.workers[0].does["bad"] = misbehave
    answer = node.ask("POST", "/agents/hello/run", {}, headers={"x-do": "bad"})
    assert (answer.status, answer.json["code"]) == (502, "agent.bad_response")
    assert answer.json["run_id"] == answer.header("Nexus-Run-Id")
    assert node.control.next_record(id=answer.header("Nexus-Run-Id"))["code"] == "agent.bad_response"


def test_an_agent_cannot_speak_for_our_origin(node, small):
    async def preach(server, request, reader, writer):
        writer.write(
            small.plain(
                b"{}", "Set-Cookie: session=stolen", "Server: evil", "Access-Control-Allow-Origin: *", "Connection: x-hop",
                "X-Hop: 1", "Clear-Site-Data: *", "Nexus-Run-Id: run_other", "Nexus-Version: 9", "X-Kept: 1",
                "Strict-Transport-Security: max-age=1", "Alt-Svc: h3=\":443\"",
            )
        )  # fmt: skip
        await writer.drain()
        return True

    node.workers[0].does["preach"] = preach
    answer = node.ask("POST", "/agents/hello/run", {}, headers={"x-do": "preach"})
    names = [name.lower() for name, _ in answer.headers]
    assert answer.status == 200
    assert answer.header("X-Kept") == "1"
    assert answer.header("Nexus-Version") == "1.0.0"
    assert names.count("nexus-run-id") == 1
    assert not set(names) & {
        "set-cookie", "server", "access-control-allow-origin", "x-hop", "clear-site-data", "strict-transport-security", "alt-svc",
    }  # fmt: skip
    assert answer.header("X-Content-Type-Options") == "nosniff"


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(node):
    async def break_off(server, request, reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        await server.gate("break").wait()
        writer.transport.abort()
        return False

    worker = node.workers[0]
    worker.does["break"] = break_off
    with node.connect() as client:
        client.sendall(post(node, b"x-do: break\r\n"))
        until(client, b"hello")
        node.open_gate(worker, "break")
        rest = b""
        try:
            while part := client.recv(65536):
                rest += part
        except ConnectionResetError:
            pass
    assert b"0\r\n\r\n" not in rest


def test_an_agent_that_dies_before_answering_is_502_and_not_tried_again(node):
    async def die(server, request, reader, writer):
        writer.transport.abort()
        return False

    worker = node.workers[0]
    worker.does["die"] = die
    while not worker.seen.empty():
        worker.seen.get_nowait()
    answer = node.ask("POST", "/agents/hello/run", {}, headers={"x-do": "die"})
    assert (answer.status, answer.json["code"]) == (502, "agent.connection_lost")
    assert worker.seen.qsize() == 1


def test_what_follows_an_answer_is_thrown_away_with_the_connection(node, small):
    async def babble(server, request, reader, writer):
        writer.write(small.plain(b"one") + small.plain(b"two"))
        await writer.drain()
        await reader.read(1)
        return False

    node.workers[0].does["babble"] = babble
    assert node.ask("POST", "/agents/hello/run", {}, headers={"x-do": "babble"}).body == b"one"
    assert b'"output"' in node.ask("POST", "/agents/hello/run", {}).body


def test_an_answer_without_a_length_is_passed_on_and_ended(node):
    async def naked(server, request, reader, writer):
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it")
        await writer.drain()
        return False

    node.workers[0].does["naked"] = naked
    assert node.ask("POST", "/agents/hello/run", {}, headers={"x-do": "naked"}).body == b"all of it"


def test_a_run_past_its_deadline_is_504(node):
    entry = dict(node.control.entries["deployment/acme/hello/production"])
    node.control.change({"deployment/acme/brief/production": {**entry, "timeout_s": 0.05}})
    node.settled()
    emptied(node.workers[0])
    answer = node.ask("POST", "/agents/brief/run", {}, headers={"x-do": "hang"})
    assert (answer.status, answer.json["code"]) == (504, "run.timeout")
    assert node.workers[0].closed.get(timeout=5) == answer.header("Nexus-Run-Id")


def test_connections_to_a_worker_are_reused(node):
    worker = node.workers[0]
    node.ask("POST", "/agents/hello/run", {})
    before = worker.connections
    for _ in range(20):
        assert node.ask("POST", "/agents/hello/run", {}).status == 200
    assert worker.connections == before


def test_a_stop_finishes_what_is_under_way(bare_node, small):
    node = bare_node
    worker = node.worker("a")
    node.control.change({"deployment/acme/hello/production": small.deployment_entry(worker)})
    child = node.start()
    with node.connect() as idle:
        going = node.later("POST", "/agents/hello/run", {}, headers={"x-do": "gated"})
        worker.seen.get(timeout=5)
        child.send_signal(signal.SIGTERM)
        assert idle.recv(1) == b""
        node.wait_for(lambda: refuses(node))
        node.open_gate(worker, "gate")
        assert going.result(10).status == 200
    assert child.wait(10) == 0
    assert node.control.next_record(outcome="completed")["agent"] == "hello"


def test_a_second_signal_forces_the_stop(bare_node, small):
    node = bare_node
    worker = node.worker("a")
    node.control.change({"deployment/acme/hello/production": small.deployment_entry(worker)})
    child = node.start()
    going = node.later("POST", "/agents/hello/run", {}, headers={"x-do": "hang"})
    worker.seen.get(timeout=5)
    child.send_signal(signal.SIGTERM)
    node.wait_for(lambda: refuses(node))
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 0
    with pytest.raises(Exception):  # noqa: B017 - however the client's library calls a cut connection
        going.result(10)
    assert worker.closed.get(timeout=5)


def emptied(worker):
    for line in (worker.seen, worker.closed):
        while not line.empty():
            line.get_nowait()
    return worker


def refuses(node):
    try:
        node.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024
