"""By which name a host with a certificate is called, and that those on its machine believe it."""

import datetime
import ipaddress
import json
import socket
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nexus.apps import host_tls, keeper_probe, keeper_record, settings
from nexus.client import connection, transport
from nexus.core import errors
from nexus.kit import home


@pytest.fixture(scope="module")
def issue(tmp_path_factory):
    """Make a certificate for names and addresses; answers the environment that names it."""
    folder = tmp_path_factory.mktemp("tls")

    def make(*names):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a host")])
        now = datetime.datetime.now(datetime.UTC)
        draft = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        if names:
            alternatives = [
                x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() or ":" in name else x509.DNSName(name)
                for name in names
            ]
            draft = draft.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        pem = serialization.Encoding.PEM
        number = len(list(folder.iterdir()))
        (folder / f"{number}.crt").write_bytes(draft.sign(key, hashes.SHA256()).public_bytes(pem))
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{number}.key").write_bytes(secret)
        return {"NEXUS_TLS_CERT": str(folder / f"{number}.crt"), "NEXUS_TLS_KEY": str(folder / f"{number}.key")}

    return make


@pytest.mark.parametrize(
    ("names", "host", "origin"),
    [
        (("127.0.0.1",), "127.0.0.1", "https://127.0.0.1:8700"),
        (("agents.example",), "0.0.0.0", "https://agents.example:8700"),
        (("*.example", "agents.example", "127.0.0.1"), "127.0.0.1", "https://127.0.0.1:8700"),
        (("*.example",), "127.0.0.1", "https://127.0.0.1:8700"),
        (("::1",), "::", "https://[::1]:8700"),
        ((), "127.0.0.1", "https://127.0.0.1:8700"),
        (("localhost",), "localhost", "https://localhost:8700"),
    ],
)
def test_the_address_of_a_host_with_a_certificate(issue, tmp_path, names, host, origin):
    environ = {**issue(*names), "NEXUS_HOME": str(tmp_path), "NEXUS_HOST": host}
    assert settings.read_settings(environ).origin == origin


def test_half_a_configuration_or_no_certificate_is_said_plainly(issue, tmp_path):
    whole = issue("127.0.0.1")
    for broken in ({"NEXUS_TLS_CERT": whole["NEXUS_TLS_CERT"]}, {**whole, "NEXUS_TLS_KEY": "/nowhere"}):
        with pytest.raises(errors.Invalid, match="NEXUS_TLS_KEY"):
            host_tls.read_certificate(broken)
    (tmp_path / "not.pem").write_text("nothing")
    with pytest.raises(errors.Invalid, match="holds no certificate"):
        host_tls.choose_name(tmp_path / "not.pem", "127.0.0.1")


def test_probe_and_clients_of_this_machine_believe_the_certificate_and_no_other(issue, tmp_path):
    mine, other = issue("localhost"), issue("localhost")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(mine["NEXUS_TLS_CERT"], mine["NEXUS_TLS_KEY"])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()[:2]

        def answer():
            while True:
                try:
                    accepted, _ = listening.accept()
                except OSError:
                    return
                try:
                    with server.wrap_socket(accepted, server_side=True) as client:
                        client.recv(65536)
                        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                except OSError:
                    accepted.close()

        threading.Thread(target=answer, daemon=True).start()
        paths = [settings.absolute(one["NEXUS_TLS_CERT"]) for one in (mine, other)]
        assert keeper_probe.ask(address, "/health", timeout_s=5, certificate=paths[0]) == (200, {})
        assert keeper_probe.ask(address, "/health", timeout_s=5, certificate=paths[1]) is None
        assert keeper_probe.ask(address, "/health", timeout_s=5) is None

        origin = f"https://localhost:{address[1]}"
        (tmp_path / "host.json").write_text(json.dumps({"origin": origin, "tls_certificate": mine["NEXUS_TLS_CERT"]}))
        found = connection.find(None, "key", {"NEXUS_HOME": str(tmp_path)})
        context = transport.settings(found)["verify"]
        with socket.create_connection(address, timeout=5) as plain, context.wrap_socket(plain, server_hostname="localhost"):
            pass
        elsewhere = connection.find("https://agents.example", "key", {"NEXUS_HOME": str(tmp_path)})
        assert transport.settings(elsewhere)["verify"] is True, "the certificate is believed for its own host only"


def test_a_record_of_an_older_version_is_read(tmp_path):
    node = home.Home(tmp_path)
    record = keeper_record.HostRecord(
        origin="http://127.0.0.1:1", pid=1, ticks=1, started_at=1.0, host="127.0.0.1", port=1, gateways=1, database="embedded",
        boot=keeper_record.boot_id(), version="0",
    )  # fmt: skip
    keeper_record.write(node, record)
    written = json.loads(node.host_record.read_text())
    del written["tls_certificate"]
    node.host_record.write_text(json.dumps(written))
    assert keeper_record.read(node) == record
    assert keeper_record.certificate_of(record) is None
