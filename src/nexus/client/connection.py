"""Which host to call and with which key: from arguments, the environment, `nexus login`, or the host on this machine.

A key found on disk is only ever sent to the address it was stored for.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nexus.core import errors
from nexus.kit import home

DEFAULT_URL = "http://127.0.0.1:8700"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """`source` says in words where the address came from, `key_file` names the admin key's file when that is what is used,
    `certificate` the file that the host on this machine serves with: it is trusted for that address and no other."""

    base_url: str
    api_key: str | None = field(repr=False)
    source: str
    key_file: Path | None = None
    certificate: Path | None = None

    @property
    def is_local(self) -> bool:
        return (urlsplit(self.base_url).hostname or "") in ("127.0.0.1", "localhost", "::1")


def find(base_url: str | None, api_key: str | None, environ: Mapping[str, str]) -> Connection:
    """The connection. Raises `Invalid` (code `url.invalid`) for an address that is not http or https."""
    place = home.find_home(environ.get("NEXUS_HOME"))
    login, local = _login(credentials_file(place)), _local(place)
    url, source = next(
        (
            (candidate, source)
            for candidate, source in (
                (base_url, "the base_url argument"),
                (environ.get("NEXUS_URL"), "NEXUS_URL"),
                (login.get("url"), "nexus login"),
                (local.get("origin"), f"the host of {place.root}"),
            )
            if candidate
        ),
        (DEFAULT_URL, "the default"),
    )
    url = check_url(url)
    key = api_key or environ.get("NEXUS_API_KEY") or environ.get("NEXUS_TOKEN")
    if not key and login.get("key") and check_url(login["url"]) == url:
        key = login["key"]
    key_file = None
    if not key and url in (_normal(local.get("origin", "")), DEFAULT_URL):
        key = _read(place.admin_key).strip()
        key_file = place.admin_key if key else None
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise errors.Invalid("the API key holds characters no key has", code="key.invalid", next_step="copy the key again")
    certificate = local.get("tls_certificate") if url == _normal(local.get("origin", "")) else None
    return Connection(
        base_url=url,
        api_key=key or None,
        source=source,
        key_file=key_file,
        certificate=None if certificate is None else Path(certificate),
    )


def check_url(url: str) -> str:
    """The address without a trailing slash."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.username or parts.query or parts.fragment or any(letter.isspace() for letter in url):
        raise errors.Invalid(
            f"{url[:200]!r} is not the address of a host",
            code="url.invalid",
            cause="an address is http://host:port or https://host, without credentials",
            next_step=f"use an address such as {DEFAULT_URL}",
        )
    return _normal(url)


def credentials_file(place: home.Home) -> Path:
    """Where `nexus login` keeps its address and key (0600)."""
    return place.root / "credentials.json"


def _normal(url: str) -> str:
    return url.rstrip("/")


def _login(path: Path) -> dict[str, str]:
    stored = _object(path)
    return {name: value for name, value in stored.items() if name in ("url", "key") and isinstance(value, str)}


def _local(place: home.Home) -> dict[str, str]:
    record = _object(place.host_record)
    return {name: record[name] for name in ("origin", "tls_certificate") if isinstance(record.get(name), str)}


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
