"""`python -m nexus.apps.gateway`: reads the environment, starts one gateway process, turns signals into a stop."""

import asyncio
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import uvloop

from nexus.core import errors
from nexus.gateway import process, settings
from nexus.kit import egress, home


def read_settings(environ: Mapping[str, str]) -> settings.Settings:
    """Raises Invalid (`setting.invalid`) naming the variable and what is expected."""
    certificate, key = _file(environ, "NEXUS_TLS_CERT"), _file(environ, "NEXUS_TLS_KEY")
    if (certificate is None) != (key is None):
        missing = "NEXUS_TLS_KEY" if key is None else "NEXUS_TLS_CERT"
        raise errors.Invalid(f"TLS needs NEXUS_TLS_CERT and NEXUS_TLS_KEY; {missing} is not set", code="setting.invalid")
    return settings.Settings(
        home=home.find_home(environ.get("NEXUS_HOME")),
        host=environ.get("NEXUS_HOST") or "127.0.0.1",
        port=_number(environ, "NEXUS_PORT", 8700, 65535),
        number=_number(environ, "NEXUS_GATEWAY", 0, 4095),
        gateways=_number(environ, "NEXUS_GATEWAYS", 1, 4096),
        hosts=_names(environ.get("NEXUS_ALLOWED_HOSTS", "")),
        origins=_names(environ.get("NEXUS_ALLOWED_ORIGINS", "")),
        public_requests_per_minute=_number(environ, "NEXUS_PUBLIC_REQUESTS_PER_MINUTE", 600, 1_000_000),
        proxies=_networks(environ, "NEXUS_TRUSTED_PROXIES", settings.LOOPBACK),
        tls_certificate=certificate,
        tls_key=key,
    )


def _number(environ: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and int(text) <= most):
        raise errors.Invalid(f"{name}={text[:40]!r} is not a number from 0 to {most}", code="setting.invalid")
    return int(text)


def _networks(environ: Mapping[str, str], name: str, default: tuple[egress.Network, ...]) -> tuple[egress.Network, ...]:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if text == "none":
        return ()
    try:
        return egress.parse_allowance(text).networks
    except ValueError:
        message = f"{name}={text[:200]!r} are not addresses or ranges such as 10.0.0.0/8, with commas between"
        raise errors.Invalid(message, code="setting.invalid") from None


def _file(environ: Mapping[str, str], name: str) -> Path | None:
    text = environ.get(name, "").strip()
    if not text:
        return None
    path = Path(text)
    if not (path.is_absolute() and path.is_file()):
        raise errors.Invalid(f"{name}={text[:200]!r} is not the absolute path of a file", code="setting.invalid")
    return path


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in text.split(",") if name.strip())


async def run(config: settings.Settings) -> None:
    """Serve until SIGTERM or SIGINT; a second one forces. SIGHUP starts a successor that takes the listening sockets over."""
    stop, force = asyncio.Event(), asyncio.Event()
    successors: list[subprocess.Popen[bytes]] = []

    def start_successor() -> None:
        if stop.is_set() or any(one.poll() is None for one in successors):
            return
        logging.getLogger(__name__).info("starting a successor")
        successors[:] = [subprocess.Popen([sys.executable, "-m", "nexus.apps.gateway"], stdin=subprocess.DEVNULL)]

    def on_signal() -> None:
        (force if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(signal.SIGHUP, start_successor)
    await process.serve(config, stop=stop, force=force)


def main() -> int:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s gateway %(name)s: %(message)s", force=True
    )
    log = logging.getLogger(__name__)
    try:
        config = read_settings(os.environ)
    except errors.NexusError as error:
        log.error("%s", error.message)
        return 2
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(config))
    except OSError as error:
        log.error("cannot listen on %s port %d: %s", config.host, config.port, error.strerror or error)
        return 9
    return 0


if __name__ == "__main__":
    sys.exit(main())
