"""A running host is brought to another version or configuration: real keeper, real gateways with TLS, clients that never stop."""

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import threading

import pytest

from nexus.apps import keeper_record
from nexus.kit import tls

pytestmark = [pytest.mark.xdist_group("real-host"), pytest.mark.slow]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """For a name and not for the address that the host listens on."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return {"NEXUS_TLS_CERT": str(folder / "cert.pem"), "NEXUS_TLS_KEY": str(folder / "key.pem")}


@pytest.fixture
def nexus(rig, certificate):
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-P", "-m", "nexus.cli.main", *arguments],
            env=rig.environment(**certificate, NEXUS_DISPATCHERS="1"), capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip

    yield run
    run("down", "--force")


class Client(threading.Thread):
    """Asks one thing again and again over TLS, on a kept or on fresh connections; `wrong` holds whatever was not a 200."""

    def __init__(self, port: int, path: str, key: str, context: ssl.SSLContext, *, keep: bool) -> None:
        super().__init__(daemon=True)
        self.port, self.path, self.key, self.context, self.keep = port, path, key, context, keep
        self.count, self.wrong, self.done = 0, [], threading.Event()

    def run(self) -> None:
        connection = None
        while not self.done.is_set():
            connection = connection or http.client.HTTPSConnection("localhost", self.port, timeout=10, context=self.context)
            try:
                connection.request("GET", self.path, headers={"Authorization": f"Bearer {self.key}"})
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.wrong.append(answer.status)
                if answer.will_close or not self.keep:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(repr(error))
                connection = None
            self.count += 1
        if connection is not None:
            connection.close()


def pids(rig) -> dict[str, int]:
    return {entry.name: entry.pid for entry in keeper_record.read(rig.home).processes}


def test_gateways_are_replaced_without_a_failed_request_and_all_of_it_speaks_tls(rig, nexus, certificate):
    started = nexus("up", "-d", "--json")
    assert started.returncode == 0, started.stderr + rig.logs()
    origin = json.loads(started.stdout)["origin"]
    assert origin.startswith("https://localhost:")
    assert json.loads(nexus("status", "--json").stdout)["gateway"] == "answers"
    listed = nexus("ai", "agent", "list", "--json")
    assert listed.returncode == 0, listed.stderr

    record = keeper_record.read(rig.home)
    context = tls.trusting(keeper_record.certificate_of(record))
    key = rig.home.admin_key.read_text().strip()
    asked = [(path, keep) for path in ("/v1/models", "/v1/agents") for keep in (True, False)]
    clients = [Client(record.port, path, key, context, keep=keep) for path, keep in asked]
    for client in clients:
        client.start()
    try:
        rig.wait_for(lambda: all(client.count > 5 for client in clients), "the clients to begin")
        before = pids(rig)
        os.kill(record.pid, signal.SIGHUP)
        rig.wait_for(lambda: _replaced(before, pids(rig), "dispatcher-0", "gateway-0", "gateway-1"), "new ones")
        after = pids(rig)
        for client in clients[2:]:  # control starts again below: its API waits for it, but not for ever
            client.done.set()
            client.join(15)
        assert [after[name] for name in ("control", "supervisor", "postgres")] == [
            before[name] for name in ("control", "supervisor", "postgres")
        ]

        again = nexus("up", "-d", "--reload", "--json")
        assert again.returncode == 0, again.stderr + rig.logs()
        assert json.loads(again.stdout)["origin"] == origin
        renewed, now = keeper_record.read(rig.home), pids(rig)
        assert renewed.pid != record.pid
        assert not keeper_record.is_alive(record)
        assert _replaced(after, now, "control", "dispatcher-0", "gateway-0", "gateway-1")
        assert not [entry for entry in renewed.processes if entry.name.startswith(("dispatcher", "gateway")) and entry.restarts]
        assert [now[name] for name in ("supervisor", "postgres")] == [after[name] for name in ("supervisor", "postgres")]
        reached = [client.count for client in clients[:2]]
        rig.wait_for(
            lambda: all(client.count > count + 5 for client, count in zip(clients[:2], reached, strict=True)), "more answers"
        )
        assert nexus("ai", "agent", "list", "--json").returncode == 0
    finally:
        for client in clients:
            client.done.set()
        for client in clients:
            client.join(15)
    assert [client.wrong for client in clients] == [[], [], [], []], rig.logs()
    assert nexus("down").returncode == 0
    assert not any(keeper_record.ticks_of(pid) for pid in now.values())


def _replaced(before: dict[str, int], after: dict[str, int], *names: str) -> bool:
    return all(after.get(name) not in (None, before[name]) for name in names)
