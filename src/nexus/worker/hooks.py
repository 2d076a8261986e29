"""Says which run a model call belongs to: adds the relay's headers to requests of the common HTTP libraries.

Each library is patched when the author imports it (or at once, if it is there), never imported by us. Calls to other
addresses are left untouched.
"""

import functools
import urllib.parse
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from nexus.ports import run as ports
from nexus.worker import patches


def headers_for(url: str) -> Mapping[str, str]:
    """What a request to this address should carry; empty outside runs and for other addresses."""
    run = ports.CURRENT.get()
    if run is None or not url.startswith("http://"):
        return {}
    try:
        parts = urllib.parse.urlsplit(url)
        return run.outgoing_headers(parts.hostname or "", parts.port or 80)
    except ValueError:
        return {}


_MOVED: dict[int, int] = {}
_LOOPBACK = ("127.0.0.1", "localhost")


def move_relay(old: int, new: int) -> None:
    """Clients that were made while the relay's port was another one are led to where it is now."""
    _MOVED[old] = new


def moved_url(url: str) -> str:
    """The address to ask instead; the same one unless the relay has moved away from there."""
    if not _MOVED or not url.startswith("http://"):
        return url
    try:
        parts = urllib.parse.urlsplit(url)
        new = _MOVED.get(parts.port or 80) if parts.hostname in _LOOPBACK else None
    except ValueError:
        return url
    return url if new is None else parts._replace(netloc=f"{parts.hostname}:{new}").geturl()


def _prepare_httpx(request: Any) -> None:
    url = str(request.url)
    if (moved := moved_url(url)) != url:
        request.url = type(request.url)(moved)
    request.headers.update(headers_for(moved))


def _patch_httpx(module: ModuleType) -> None:
    for cls in (module.Client, module.AsyncClient):
        _wrap(cls, "send", _prepare_httpx)


def _prepare_requests(request: Any) -> None:
    request.url = moved_url(request.url)
    request.headers.update(headers_for(request.url))


def _patch_requests(module: ModuleType) -> None:
    _wrap(module.Session, "send", _prepare_requests)


def _wrap(cls: Any, name: str, prepare: Callable[[Any], None]) -> None:
    original = getattr(cls, name)

    @functools.wraps(original)
    def send(self: Any, request: Any, *arguments: Any, **more: Any) -> Any:
        prepare(request)
        return original(self, request, *arguments, **more)

    setattr(cls, name, send)


def _patch_urllib(module: ModuleType) -> None:
    original = module.OpenerDirector.open

    @functools.wraps(original)
    def open_url(self: Any, fullurl: Any, *arguments: Any, **more: Any) -> Any:
        url = fullurl if isinstance(fullurl, str) else fullurl.full_url
        if (moved := moved_url(url)) != url:
            url = moved
            if isinstance(fullurl, str):
                fullurl = moved
            else:
                fullurl.full_url = moved
        if added := headers_for(url):
            data = arguments[0] if arguments else more.get("data")
            fullurl = module.Request(url, data) if isinstance(fullurl, str) else fullurl
            for name, value in added.items():
                fullurl.add_unredirected_header(name, value)
        return original(self, fullurl, *arguments, **more)

    module.OpenerDirector.open = open_url


def _patch_aiohttp(module: ModuleType) -> None:
    original = module.ClientSession._request

    @functools.wraps(original)
    async def request(self: Any, method: str, str_or_url: Any, **more: Any) -> Any:
        url = str(str_or_url)
        if (moved := moved_url(url)) != url:
            str_or_url = url = moved
        if added := headers_for(url):
            given = more.get("headers")
            pairs = list(given.items()) if isinstance(given, Mapping) else list(given or ())
            more["headers"] = [*pairs, *added.items()]
        return await original(self, method, str_or_url, **more)

    module.ClientSession._request = request


_PATCHES: Mapping[str, Callable[[ModuleType], None]] = {
    "httpx": _patch_httpx,
    "httpx2": _patch_httpx,
    "requests": _patch_requests,
    "urllib.request": _patch_urllib,
    "aiohttp": _patch_aiohttp,
}


def install() -> None:
    """Patch what is imported already, and the rest as it comes. Calling it twice changes nothing."""
    global _installed
    if _installed:
        return
    _installed = True
    for name, patch in _PATCHES.items():
        patches.when_imported(name, patch, otherwise=f"model calls made with {name} may not be tied to their run")


_installed = False
