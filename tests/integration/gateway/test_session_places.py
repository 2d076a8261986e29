"""Sessions with workers of their own: who is asked for their place, how often, and what becomes of one that moved."""

import asyncio
import json
import time

import pytest

from nexus.kit import keys, session_tokens


class Supervisor:
    """Answers `POST /sessions` with a small worker of each session's own, started when it is asked for."""

    def __init__(self, node, small):
        self.node, self.small, self.asked, self.refusal, self.gate = node, small, [], None, None
        self.keeps, self.dies = False, False
        self.server = small.SmallServer(
            address=f"unix:{node.home.supervisor_socket}", name="supervisor", does={"echo": self.answer}
        )
        node.stage.run(self.server.start())

    async def answer(self, server, request, reader, writer):
        wanted = json.loads(request.body)
        self.asked.append(wanted)
        if self.dies:
            self.dies = False
            return False
        if self.gate is not None:
            await self.gate.wait()
        if self.refusal is not None:
            writer.write(self.small.plain(json.dumps(self.refusal).encode(), status="429 Too Many Requests"))
            return False
        path = self.node.home.run / "i" / f"{wanted['session']}-{len(self.asked)}.sock"
        name = f"{wanted['session']}-{len(self.asked)}"
        worker = self.small.SmallServer(address=f"unix:{path}", name=name, does={"events": self.small.events})
        await worker.start()
        self.node.workers.append(worker)
        told = {"instance": wanted["instances"][0], "address": worker.address, "phase": "live", "how": "fork"}
        writer.write(self.small.plain(json.dumps(told).encode()))
        return self.keeps


@pytest.fixture
def isolated(bare_node, small):
    """Agent `hello`, whose sessions have workers of their own."""
    node = bare_node
    supervisor = Supervisor(node, small)
    node.workers.append(supervisor.server)
    entry = small.deployment_entry(node.worker("a"), options={"isolation": "session"})
    node.control.change({"deployment/acme/hello/production": entry})
    node.start()
    node.settled()
    return node, supervisor


def run(node, session, **more):
    return node.ask("POST", "/agents/hello/run", {}, headers={"Nexus-Session-Id": session}, **more)


def test_the_supervisor_is_asked_once_for_each_session(isolated):
    node, supervisor = isolated
    by = [run(node, session).json["by"] for session in ("one", "two", "one", "two", "one")]
    assert by == ["one-1", "two-2", "one-1", "two-2", "one-1"]
    assert supervisor.asked == [{"instances": ["ins_a"], "session": "one"}, {"instances": ["ins_a"], "session": "two"}]


def test_a_connection_to_the_supervisor_is_kept_and_may_end_between_two_questions_or_at_one(isolated):
    node, supervisor = isolated
    supervisor.keeps = True
    assert [run(node, session).json["by"] for session in ("one", "two")] == ["one-1", "two-2"]
    assert supervisor.server.connections == 1
    for writer in list(supervisor.server.writers):
        node.stage.loop.call_soon_threadsafe(writer.close)
    assert run(node, "three").json["by"] == "three-3"
    supervisor.dies = True
    assert run(node, "four").json["by"] == "four-5", "asked again, as a place that was made is found"


def test_runs_that_come_together_share_one_question(isolated):
    node, supervisor = isolated
    later = [
        node.later("POST", "/agents/hello/run", {}, headers={"Nexus-Session-Id": "one"}) for _ in range(5)
    ]  # fmt: skip
    assert {one.result(15).json["by"] for one in later} == {"one-1"}
    assert len(supervisor.asked) == 1


def test_a_session_whose_worker_ended_gets_another(isolated):
    node, supervisor = isolated
    assert run(node, "one").json["by"] == "one-1"
    node.stage.run(node.workers[-1].stop())
    node.wait_for(lambda: run(node, "one").json.get("by") == "one-2")
    assert len(supervisor.asked) == 2


def test_a_run_without_a_session_gets_one_of_its_own(isolated):
    node, supervisor = isolated
    first, second = (node.ask("POST", "/agents/hello/run", {}) for _ in range(2))
    assert first.header("Nexus-Session-Id") != second.header("Nexus-Session-Id")
    assert [one["session"] for one in supervisor.asked] == [
        first.header("Nexus-Session-Id"),
        second.header("Nexus-Session-Id"),
    ]


def test_a_refusal_of_the_supervisor_reaches_the_caller(isolated):
    node, supervisor = isolated
    supervisor.refusal = {"kind": "exhausted", "code": "session.too_many", "detail": "no more sessions", "retry_after_s": 7}
    answer = run(node, "one")
    assert (answer.status, answer.json["code"], answer.header("Retry-After")) == (429, "session.too_many", "7")
    supervisor.refusal = None
    assert run(node, "one").status == 200


def test_without_a_supervisor_the_caller_hears_whom_to_ask(isolated):
    node, supervisor = isolated
    node.stage.run(supervisor.server.stop())
    node.home.supervisor_socket.unlink()
    answer = run(node, "one")
    assert (answer.status, answer.json["code"]) == (503, "session.no_supervisor")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda token: token, 200),
        (lambda token: token[:-2] + ("AA" if token[-2:] != "AA" else "BB"), 401),
        (lambda token: token.replace("nxe_ins_a", "nxe_ins_b"), 401),
    ],
)
def test_a_door_knows_a_sessions_token(isolated, spoil, expected):
    node, _ = isolated
    token = session_tokens.mint(keys.hash_key(node.token), instance_id="ins_a", session_id="one", expires_at=time.time() + 60)
    assert node.door(0, "GET", "/v1/models", key=spoil(token)).status == expected


def test_a_door_forgets_a_sessions_token_in_time(isolated):
    node, _ = isolated
    token = session_tokens.mint(keys.hash_key(node.token), instance_id="ins_a", session_id="one", expires_at=time.time() - 1)
    assert node.door(0, "GET", "/v1/models", key=token).status == 401


def stream_of(node, session, read):
    """Send a streamed run, call `read` with each piece as it comes, give back all of it."""
    body = b"{}"
    head = (
        f"POST /agents/hello/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {node.key}\r\nx-do: events\r\n"
        f"Nexus-Session-Id: {session}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with node.connect() as client:
        client.sendall(head.encode() + body)
        told = b""
        while piece := client.recv(65536):
            told += piece
            read(told)
        return told


def test_a_stream_hears_that_its_session_is_waking(isolated):
    node, supervisor = isolated
    supervisor.gate = node.stage.run(_event())

    def read(told):
        if b"session.waking" in told and not supervisor.gate.is_set():
            assert b"run.started" not in told
            node.stage.call(supervisor.gate.set)
        if b"run.started" in told:
            node.stage.call(node.workers[-1].gate("gate").set)

    told = stream_of(node, "one", read)
    assert told.startswith(b"HTTP/1.1 200")
    assert told.endswith(b"0\r\n\r\n")
    assert [line for line in told.split(b"\n") if line.startswith(b"event:")] == [
        b"event: session.waking", b"event: run.started", b"event: run.completed"
    ]  # fmt: skip
    record = node.control.next_record(kind="run")
    assert (record["outcome"], record["session_id"]) == ("completed", "one")


def test_a_stream_whose_session_does_not_wake_ends_with_the_reason(isolated):
    node, supervisor = isolated
    supervisor.gate = node.stage.run(_event())
    supervisor.refusal = {"kind": "exhausted", "code": "session.too_many", "detail": "no more sessions"}
    told = stream_of(node, "one", lambda told: node.stage.call(supervisor.gate.set) if b"session.waking" in told else None)
    assert b"event: run.failed\ndata: " in told
    assert b'"code": "session.too_many"' in told
    assert told.endswith(b"0\r\n\r\n")
    record = node.control.next_record(kind="run")
    assert (record["outcome"], record["status"], record["code"]) == ("failed", 429, "session.too_many")


async def _event():
    return asyncio.Event()


async def _used(server, request, reader, writer):
    from tests.integration.gateway import conftest

    writer.write(conftest.plain(b"{}", "Nexus-Usage: cpu_s=0.125"))
    await writer.drain()
    return True


def test_what_a_session_says_a_run_used_stands_in_its_record(isolated):
    node, _ = isolated
    run(node, "one")
    node.workers[-1].does["echo"] = _used
    answer = run(node, "one")
    assert answer.header("Nexus-Usage") is None
    node.control.next_record(kind="run")
    assert node.control.next_record(kind="run")["cpu_s"] == 0.125


def test_a_session_at_a_known_place_stays_there_on_the_short_way_and_leaves_with_it(isolated):
    node, supervisor = isolated
    assert {run(node, "one").json["by"] for _ in range(6)} == {"one-1"}  # from the second on over a warm connection
    assert {run(node, "two").json["by"] for _ in range(3)} == {"two-2"}
    worker = next(one for one in node.workers if one.name == "one-1")
    node.stage.run(worker.stop())
    node.wait_for(lambda: run(node, "one").status == 200)
    assert run(node, "one").json["by"].startswith("one-")
    assert run(node, "two").json["by"] == "two-2"
    assert [asked["session"] for asked in supervisor.asked].count("one") >= 2


def test_room_is_kept_for_a_run_whose_place_is_asked_for(isolated):
    node, supervisor = isolated
    entry = node.control.entries["deployment/acme/hello/production"]
    node.control.change({"deployment/acme/hello/production": {**entry, "max_concurrency": 1}})
    node.settled()
    supervisor.gate = node.stage.run(_event())
    later = [node.later("POST", "/agents/hello/run", {}, headers={"Nexus-Session-Id": name}) for name in ("one", "two")]
    node.wait_for(lambda: node.door(0, "GET", "/health").json["waiting"] == 1 and supervisor.asked)
    assert len(supervisor.asked) == 1
    node.stage.call(supervisor.gate.set)
    assert {one.result(15).status for one in later} == {200}
