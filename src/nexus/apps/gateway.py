"""`python -m nexus.apps.gateway`: reads the environment, starts one gateway process, turns signals into a stop."""

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping

import uvloop

from nexus.core import errors
from nexus.gateway import process, settings
from nexus.kit import home


def read_settings(environ: Mapping[str, str]) -> settings.Settings:
    """Raises Invalid (`setting.invalid`) naming the variable and what is expected."""
    return settings.Settings(
        home=home.find_home(environ.get("NEXUS_HOME")),
        host=environ.get("NEXUS_HOST") or "127.0.0.1",
        port=_number(environ, "NEXUS_PORT", 8700, 65535),
        number=_number(environ, "NEXUS_GATEWAY", 0, 4095),
        gateways=_number(environ, "NEXUS_GATEWAYS", 1, 4096),
        hosts=_names(environ.get("NEXUS_ALLOWED_HOSTS", "")),
        origins=_names(environ.get("NEXUS_ALLOWED_ORIGINS", "")),
    )


def _number(environ: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and int(text) <= most):
        raise errors.Invalid(f"{name}={text[:40]!r} is not a number from 0 to {most}", code="setting.invalid")
    return int(text)


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in text.split(",") if name.strip())


async def run(config: settings.Settings) -> None:
    """Serve until SIGTERM or SIGINT; a second one forces."""
    stop, force = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (force if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
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
