"""The way out of a box without a network: what is named can be reached by ordinary libraries, nothing else can."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import names_rig
import pytest
import supervisor_rig

from nexus.core import instances, usage
from nexus.core.phases import InstancePhase
from nexus.drivers.process import probe, session_client
from nexus.ports import logs
from nexus.testing.driver_contract import is_in, until

READY, FAILED = InstancePhase.READY, InstancePhase.FAILED
AGENT = """
import os, socket, urllib.error, urllib.request

def fetch(url):
    try:
        request = urllib.request.Request(url, data=b"x" * 100_000 if url.endswith("/echo") else None)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return [answer.status, answer.read().decode()[:200]]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]
    except OSError as error:
        return [0, str(error)]

def tunnel(authority, said):
    host, port = os.environ["HTTPS_PROXY"].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(f"CONNECT {authority} HTTP/1.1\\r\\nHost: {authority}\\r\\n\\r\\n".encode())
        answer = link.recv(65536).decode()
        if " 200 " in answer:
            link.sendall(said.encode())
            answer += link.makefile("rb").read().decode()
        return answer

def socks(host, port, said):
    proxy = os.environ["SOCKS_PROXY"].removeprefix("socks5h://").split(":")
    with socket.create_connection((proxy[0], int(proxy[1])), timeout=10) as link:
        link.sendall(b"\\x05\\x01\\x00")
        if link.recv(2) != b"\\x05\\x00":
            return "no method"
        name = host.encode()
        link.sendall(b"\\x05\\x01\\x00\\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
        code = link.recv(10)[1]
        if code:
            return code
        link.sendall(said.encode())
        return link.makefile("rb").read().decode()

def greet(said):
    proxy = os.environ["SOCKS_PROXY"].removeprefix("socks5h://").split(":")
    with socket.create_connection((proxy[0], int(proxy[1])), timeout=10) as link:
        link.sendall(bytes.fromhex(said))
        link.shutdown(socket.SHUT_WR)
        return link.makefile("rb").read().hex()

def fetch_directly(url):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
        return answer.read().decode()

def tunnel_pour(authority, count):
    import time
    began = time.monotonic()
    assert "got" in tunnel(authority, f"POST / HTTP/1.1\\r\\ncontent-length: {count}\\r\\n\\r\\n" + "x" * count)
    return time.monotonic() - began

def direct(host, port):
    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError as error:
        return str(error)
    return "connected"

def run(input):
    return globals()[input[0]](*input[1:])
"""


@contextlib.asynccontextmanager
async def a_server() -> AsyncIterator[tuple[int, list[str]]]:
    """Something of the outside world, which keeps the heads it was sent."""
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        heads.append(head)
        length = next((int(line.split(":")[1]) for line in head.lower().split("\r\n") if line.startswith("content-length")), 0)
        body = await reader.readexactly(length)
        answer = b"got %d" % len(body)
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heads


def allowing_loopback() -> contextlib.AbstractAsyncContextManager[supervisor_rig.SupervisorRig]:
    return supervisor_rig.started(NEXUS_EGRESS_ALLOW="127.0.0.1/32")


async def start(rig: supervisor_rig.SupervisorRig, hosts: list[str], **options: object) -> instances.InstanceStatus:
    spec = rig.spec_of({"agent.py": AGENT}, options={"network": "egress", "egress": hosts, **options})
    await rig.driver.start(spec)
    status = await until(rig, spec.id, is_in(READY, FAILED))
    assert status.phase is READY, status.problem
    return status


async def lines_of(rig: supervisor_rig.SupervisorRig, agent: str) -> list[str]:
    found: list[Any] = [line async for line in rig.driver.logs(logs.LogQuery(tenant="acme", agent=agent))]
    return [line["message"] for line in found]


async def test_named_hosts_are_reached_and_all_others_refused_with_a_reason() -> None:
    async with a_server() as (port, heads), a_server() as (other, never), allowing_loopback() as rig:
        status = await start(rig, [f"127.0.0.1:{port}", f"localhost:{port}"])
        # ordinary libraries leave loopback addresses out of proxies, so these name it another way
        answer = await rig.run(status.id, ["tunnel", f"127.0.0.1:{port}", "GET / HTTP/1.1\r\nhost: inner\r\n\r\n"])
        assert answer.startswith("HTTP/1.1 200 Connection established")
        assert answer.endswith("got 0")
        assert "host: inner" in heads[0]
        refused = await rig.run(status.id, ["tunnel", f"127.0.0.1:{other}", "GET / HTTP/1.1\r\n\r\n"])
        assert refused.startswith("HTTP/1.1 403")
        assert "hosting.egress" in refused
        assert "refused" in await rig.run(status.id, ["direct", "127.0.0.1", port])
        assert await rig.run(status.id, ["direct", "192.0.2.1", 443]) != "connected"
        assert never == []
        messages = await lines_of(rig, status.agent)
        assert any(f"egress CONNECT 127.0.0.1:{port}" in line for line in messages)
        assert any("egress refused" in line for line in messages)


async def test_plain_http_goes_through_with_its_body_and_without_what_was_for_the_proxy() -> None:
    async with a_server() as (port, heads), allowing_loopback() as rig:
        spec = rig.spec_of(
            {"agent.py": AGENT},
            options={"network": "egress", "egress": [f"127.0.0.1:{port}"]},
            env={"NO_PROXY": "", "no_proxy": ""},
        )
        await rig.driver.start(spec)
        await until(rig, spec.id, is_in(READY))
        assert await rig.run(spec.id, ["fetch", f"http://127.0.0.1:{port}/a/echo"]) == [200, "got 100000"]
        assert heads[0].startswith("POST /a/echo HTTP/1.1\r\n")
        assert f"host: 127.0.0.1:{port}" in heads[0].lower()
        assert "proxy" not in heads[0].lower()
        code, said = await rig.run(spec.id, ["fetch", "http://elsewhere.example/"])
        assert (code, "elsewhere.example" in said) == (403, True)


async def test_a_private_address_is_refused_even_when_it_is_named() -> None:
    named = ["127.0.0.1", "169.254.169.254", "10.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost"]
    async with supervisor_rig.started() as rig:
        status = await start(rig, named)
        answers = {host: await rig.run(status.id, ["tunnel", f"{host}:443", ""]) for host in named}
    assert {host: answer.split("\r\n")[0].split()[:2] for host, answer in answers.items()} == {
        host: ["HTTP/1.1", "403"] for host in named
    }


async def test_the_way_out_outlives_the_supervisor_and_no_broker_harms_the_agent() -> None:
    async with a_server() as (port, _), supervisor_rig.started(NEXUS_EGRESS_ALLOW="127.0.0.0/8") as rig:
        status = await start(rig, [f"127.0.0.1:{port}"])
        call = ["tunnel", f"127.0.0.1:{port}", "GET / HTTP/1.1\r\n\r\n"]
        assert (await rig.run(status.id, call)).endswith("got 0")
        rig.kill()
        assert await rig.run(status.id, ["direct", "127.0.0.1", 3128]) == "connected"
        await rig.up()
        after = await until(rig, status.id, is_in(READY))
        assert after.pid == status.pid
        assert (await rig.run(status.id, call)).endswith("got 0")
        await rig.driver.stop(status.id, grace_s=0)
        async with asyncio.timeout(10):
            while any(status.id in path.name for path in (rig.home.run / "i").iterdir()):
                await asyncio.sleep(0.02)


@pytest.mark.skipif(os.geteuid() != 0, reason="names of its own for a supervisor need root")
async def test_a_library_that_knows_no_proxy_reaches_named_hosts_by_their_names_and_socks_does_too() -> None:
    async with a_server() as (port, heads), a_server() as (other, never), names_rig.knowing_names() as rig:
        status = await start(rig, [f"api.test:{port}", "db.test"])
        assert await rig.run(status.id, ["fetch_directly", f"http://api.test:{port}/plain"]) == "got 0"
        assert heads[-1].startswith("GET /plain HTTP/1.1\r\n")
        assert f"host: api.test:{port}" in heads[-1].lower()
        said = "GET / HTTP/1.1\r\nhost: inner\r\n\r\n"
        assert (await rig.run(status.id, ["socks", "api.test", port, said])).endswith("got 0")
        assert await rig.run(status.id, ["socks", "api.test", other, said]) == 2
        assert await rig.run(status.id, ["socks", "localhost", port, said]) == 2
        assert await rig.run(status.id, ["socks", "db.test", 80, said]) == 4  # named, and nobody listens there
        assert await rig.run(status.id, ["direct", "db.test", 443]) == "connected"  # to the relay, which then says no
        assert await rig.run(status.id, ["direct", "api.test", other]) != "connected"
        assert never == []
        found = json.loads((await probe.get(rig.home.supervisor_socket, f"/instances/{status.id}/network", timeout_s=5))[1])
        assert found["total"]["connections"] == 2
        assert found["total"]["refused"] == 2
        assert found["total"]["sent"] > len(said)


HELLOS = [
    ("050102", "05ff"),  # only with a password
    ("0501000502000100000000ffff", "050005070001000000000000"),  # bind
    ("0501000503000100000000ffff", "050005070001000000000000"),  # UDP
    ("050100050100017f0000010050", "050005020001000000000000"),  # 127.0.0.1 by number
    ("05010005010004" + "00" * 10 + "ffff7f0000010050", "050005020001000000000000"),  # ::ffff:127.0.0.1
    ("050100050100030961006576696c2e6f720050", "050005020001000000000000"),  # a NUL in the name
    ("0501000501000700", "050005080001000000000000"),  # no such kind of address
    ("0500", "05ff"),
    ("04", ""),
    ("05", ""),
]


async def test_socks_says_no_in_its_own_words() -> None:
    async with allowing_loopback() as rig:
        status = await start(rig, ["api.example.com"])
        for said, answered in HELLOS:
            assert (await rig.run(status.id, ["greet", said])).startswith(answered), said
        assert (await rig.status(status.id)).restarts == 0


async def connections(rig, agent, count):
    """The log's lines about so many connections; each is written when its connection has ended."""
    query, told = logs.LogQuery(tenant="acme", agent=agent), []
    async with asyncio.timeout(10):
        while len(told) < count:
            told = [line for line in [line async for line in rig.driver.logs(query)] if "egress CONNECT" in line["message"]]
            await asyncio.sleep(0.02)
    return told


async def test_a_connection_is_told_with_its_run_and_counted_for_it() -> None:
    async with a_server() as (port, _), supervisor_rig.started(plain=False, NEXUS_EGRESS_ALLOW="127.0.0.1/32") as rig:
        status = await start(rig, [f"127.0.0.1:{port}"])
        said = "POST / HTTP/1.1\r\ncontent-length: 5000\r\n\r\n" + "x" * 5000
        assert (await rig.run(status.id, ["tunnel", f"127.0.0.1:{port}", said])).endswith("got 5000")
        (line,) = await connections(rig, status.agent, 1)
        assert line["run_id"]
        assert line["session_id"]
        found = json.loads((await probe.get(rig.home.supervisor_socket, f"/instances/{status.id}/network", timeout_s=5))[1])
        assert found["runs"][line["run_id"]]["sent"] == len(said)
        received = found["runs"][line["run_id"]]["received"]
        assert received > 0
        asked = session_client.ProcessSessions(rig.driver)
        assert await asked.run_traffic(status.id, [line["run_id"], "another"]) == {line["run_id"]: (received, len(said))}
        assert await asked.run_traffic(status.id, []) == {}
        usage = (await until(rig, status.id, lambda status: status.usage.network_sent > 0)).usage
        assert usage.network_sent == len(said)


async def test_a_rate_is_kept_each_way() -> None:
    async with a_server() as (port, _), allowing_loopback() as rig:
        status = await start(rig, [f"127.0.0.1:{port}"], network_limit=1_000_000)
        spent = await rig.run(status.id, ["tunnel_pour", f"127.0.0.1:{port}", 1_500_000])
        assert spent >= 1.0  # a quarter of a second's worth goes at once


async def test_a_sessions_connection_is_told_with_the_session_by_the_kernels_word() -> None:
    async with a_server() as (port, _), supervisor_rig.started(plain=False, NEXUS_EGRESS_ALLOW="127.0.0.1/32") as rig:
        status = await start(rig, [f"127.0.0.1:{port}"], isolation="session")
        node = session_client.ProcessSessions(rig.driver)
        for name in ("one", "two"):
            place = await node.place([status.id], name)
            said = "POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nxxx"
            body = json.dumps({"input": ["tunnel", f"127.0.0.1:{port}", said]}).encode()
            reader, writer = await asyncio.open_unix_connection(place.address.removeprefix("unix:"))
            head = f"POST /run HTTP/1.1\r\nhost: a\r\nconnection: close\r\nnexus-session-id: {name}\r\n"
            writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
            assert "got 3" in (await reader.read()).decode()
            writer.close()
        told = await connections(rig, status.agent, 2)
        assert [line["session_id"] for line in told] == ["one", "two"]
        assert all(line["run_id"] for line in told)
        token, rows = await node.usage("")
        passed = {row.session_id: (row.bytes_out, row.bytes_in > 0) for row in rows if row.part is usage.Part.NETWORK}
        assert passed == {"one": (len(said), True), "two": (len(said), True)}
        assert {row.session_id for row in rows if row.part is usage.Part.WORKER and row.cpu_s > 0} == {"one", "two"}
        noted = rig.home.instances / status.id / "network.json"
        async with asyncio.timeout(10):
            while not (noted.is_file() and '"two"' in noted.read_text()):
                await asyncio.sleep(0.02)
        rig.kill()
        await rig.up()
        async with asyncio.timeout(10):
            while not (found := [row for row in (await node.usage(token))[1] if row.part is usage.Part.NETWORK]):
                await asyncio.sleep(0.02)
        assert {row.session_id: row.bytes_out for row in found} == {"one": len(said), "two": len(said)}, "told anew, and whole"
