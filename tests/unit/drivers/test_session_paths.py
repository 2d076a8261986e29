"""Sockets of sessions have names that a socket's path has room for, in the deepest home whose sockets lie in it."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.drivers.process import session_paths
from nexus.kit.home import Home

INSTANCE = "ins_" + "0" * 26


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_every_socket_of_a_session_fits_into_the_deepest_run_folder(short: Path) -> None:
    depth = 107 - len("/i/") - 30 - len(".sock") - len(os.fsencode(short)) - len("//run")
    home = Home(short / ("d" * depth))
    assert home.run == home.root / "run"
    home.run.mkdir(parents=True)
    at = session_paths.of_instance(home, INSTANCE)
    name = session_paths.new_name()
    for path in (at.address(INSTANCE, "s" * 256), at.orders(f"{INSTANCE}.{name}"), at.commands(name)):
        session_paths.listen(path, kind=socket.SOCK_SEQPACKET).close()
