"""What speaks against forking a process, found in real ones."""

import subprocess
import sys

import pytest

START = "from nexus.worker import session_forkable as f\nown = f.descriptors()\n"
SAY = "\nprint(f.find_reason(own=own))"


def ask(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", START + code + SAY], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


LEAVES = """
import ctypes, threading, time
libc = ctypes.CDLL(None)
thread = ctypes.c_ulong()
libc.pthread_create.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
libc.pthread_create(ctypes.byref(thread), None, ctypes.cast(libc.usleep, ctypes.c_void_p), 300_000)
"""  # a thread that Python knows nothing of, and that ends by itself

POLLER = "\nimport threading\nthreading.Thread(target=threading.Event().wait, daemon=True, name='poller').start()"


@pytest.mark.parametrize(
    "code", ["", "import json, ssl, decimal", "kept = open('/dev/null')", "kept = open('/etc/passwd')", LEAVES]
)
def test_nothing_speaks_against(code: str) -> None:
    assert ask(code) == "None"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (POLLER, "1 thread started (poller)"),
        (f"{LEAVES}{POLLER}", "1 thread started (poller)"),
        ("import socket\nkept = socket.socket()", "left open (socket:["),
        ("import asyncio\nkept = asyncio.new_event_loop()", "left open"),
        ("import tempfile\nkept = tempfile.NamedTemporaryFile()", "1 file or socket left open (/"),
        ("import mmap\nkept = mmap.mmap(-1, 4096)", "memory that processes share"),
        ("import atexit, subprocess\nkept = subprocess.Popen(['sleep', '5'])\natexit.register(kept.kill)", "1 process started"),
        ("import os\nkept = os.pipe()", "2 files or socket left open"),
    ],
)  # fmt: skip
def test_what_a_fork_would_share_or_lose_is_named(code: str, said: str) -> None:
    assert said in ask(code)
