"""Which host is called and which key it is given; a key is never sent anywhere but where it belongs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nexus.client import connection
from nexus.core import errors

LOCAL = "http://127.0.0.1:8811"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"NEXUS_HOME": str(tmp_path)}


def start_local(home: Path) -> None:
    (home / "host.json").write_text(json.dumps({"origin": LOCAL}))
    (home / "admin.key").write_text("nxk_admin\n")


def login(home: Path, url: str) -> None:
    (home / "credentials.json").write_text(json.dumps({"url": url, "key": "nxk_login"}))


def found(environ: dict[str, str], url: str | None = None, key: str | None = None) -> tuple[str, str | None]:
    connected = connection.find(url, key, environ)
    return connected.base_url, connected.api_key


def test_the_host_on_this_machine_with_its_admin_key(tmp_path: Path, environ: dict[str, str]) -> None:
    start_local(tmp_path)
    assert found(environ) == (LOCAL, "nxk_admin")


def test_nothing_known_means_the_default_address_without_a_key(environ: dict[str, str]) -> None:
    assert found(environ) == (connection.DEFAULT_URL, None)


def test_arguments_come_before_the_environment_before_login_before_this_machine(tmp_path: Path, environ: dict[str, str]) -> None:
    start_local(tmp_path)
    login(tmp_path, "https://remote.example")
    assert found(environ) == ("https://remote.example", "nxk_login")
    environ |= {"NEXUS_URL": "https://other.example/", "NEXUS_API_KEY": "nxk_env"}
    assert found(environ) == ("https://other.example", "nxk_env")
    assert found(environ, "https://third.example", "nxk_argument") == ("https://third.example", "nxk_argument")


@pytest.mark.parametrize("url", ["https://evil.example", "http://127.0.0.1:8812", "http://127.0.0.1.evil.example:8811"])
def test_a_stored_key_is_not_sent_elsewhere(tmp_path: Path, environ: dict[str, str], url: str) -> None:
    start_local(tmp_path)
    login(tmp_path, "https://remote.example")
    assert found(environ | {"NEXUS_URL": url}) == (url, None)


@pytest.mark.parametrize(
    "url", ["ftp://x", "x", "http://", "http://a b", "http://user:pass@host", "http://host:99999", "http://[::1", "http://h?q=1"]
)
def test_an_address_that_is_none(environ: dict[str, str], url: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        connection.find(url, None, environ)
    assert caught.value.code == "url.invalid"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"url": 3}', "\x00"])
def test_a_damaged_record_is_like_none(tmp_path: Path, environ: dict[str, str], content: str) -> None:
    for name in ("host.json", "credentials.json"):
        (tmp_path / name).write_text(content)
    assert found(environ) == (connection.DEFAULT_URL, None)


def test_a_key_with_a_line_break_is_refused_without_being_shown(environ: dict[str, str]) -> None:
    with pytest.raises(errors.Invalid) as caught:
        connection.find(LOCAL, "nxk_secret\r\nX: y", environ)
    assert "nxk_secret" not in str(caught.value)


def test_the_key_is_not_in_the_repr(environ: dict[str, str]) -> None:
    assert "nxk_secret" not in repr(connection.find(LOCAL, "nxk_secret", environ))


def test_importing_nexus_imports_no_http_library() -> None:
    code = "import sys, nexus; sys.exit(any(name in sys.modules for name in ('httpx2', 'pydantic', 'asyncio')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
