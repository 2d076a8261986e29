"""Parallel model calls against one budget, over all gateways of a whole host: what was spent beside what was allowed.

    python benchmarks/models/overshoot.py [--calls 1000] [--pays-for 200] [--gateways 2]

Every call costs the same at the scripted provider. Prints how many were served and refused, the sum of what the provider
counted, the limit, and how long a stop takes to cut streams under way.
"""

import argparse
import asyncio
import collections
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

NEXUS = [sys.executable, "-m", "nexus.cli.main"]
OUTPUT, IN_USD, OUT_USD = 16, 1.0, 10.0
BODY = {"model": "fast/fake-model", "messages": [{"role": "user", "content": "one two three four"}], "max_tokens": OUTPUT}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--calls", type=int, default=1000)
    asked.add_argument("--pays-for", type=int, default=200)
    asked.add_argument("--gateways", type=int, default=2)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="nx-overshoot-") as folder:
        home, port, fast, slow = Path(folder) / "home", free_port(), free_port(), free_port()
        home.mkdir()
        one = 20 * IN_USD / 1e6 + OUTPUT * OUT_USD / 1e6
        limit = round(one * given.pays_for, 6)
        price = {"fake-model": {"price": {"input": IN_USD, "output": OUT_USD}}}
        providers = {
            name: {"base_url": f"http://127.0.0.1:{at}/v1", "models": price} for name, at in (("fast", fast), ("slow", slow))
        }
        budget = {"limit": limit, "period": "day"}
        (home / "models.yaml").write_text(json.dumps({"providers": providers, "budgets": {"all": budget}}))
        env = {**os.environ, "NEXUS_HOME": str(home), "NEXUS_PORT": str(port), "NEXUS_GATEWAYS": str(given.gateways)}
        llms = [
            subprocess.Popen(
                [*NEXUS, "dev", "fake-llm", "--port", str(at), *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            for at, more in ((fast, ["--latency", "0.05"]), (slow, ["--tokens", "9000", "--piece", "0.02"]))
        ]
        subprocess.run([*NEXUS, "up", "-d"], env=env, check=True, stdout=subprocess.DEVNULL)
        try:
            key = (home / "admin.key").read_text().strip()
            asyncio.run(overshoot(port, key, given.calls, limit))
            ask(port, key, "PUT", "/v1/model-budgets/all", {"limit": 1000, "period": "day"})
            for _ in range(3):
                stop(port, key)
        finally:
            subprocess.run(
                [*NEXUS, "down", "--force"], env=env, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            for llm in llms:
                llm.terminate()


async def overshoot(port: int, key: str, calls: int, limit: float) -> None:
    started = time.monotonic()
    answers = await asyncio.gather(*(call(port, key) for _ in range(calls)))
    took = time.monotonic() - started
    statuses = collections.Counter(int(answer.split(b" ", 2)[1]) for answer in answers)
    spent = 0.0
    for answer in answers:
        if answer.startswith(b"HTTP/1.1 200"):
            used = json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]
            spent += used["prompt_tokens"] * IN_USD / 1e6 + used["completion_tokens"] * OUT_USD / 1e6
    print(f"{calls} calls at once in {took:.2f} s: {dict(statuses)}")
    print(f"spent by the provider's count ${spent:.6f} of ${limit:.6f}: {spent / limit:.1%} of the budget")


async def call(port: int, key: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(key, BODY))
    answer = await reader.read()
    writer.close()
    return answer


def request(key: str, body: dict) -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


def stop(port: int, key: str) -> None:
    """From asking for a stop to the end of a stream under way."""
    client, seen = begin_stream(port, key)
    while b"data:" not in seen:  # the stop before may not be lifted yet at this gateway
        client.close()
        client, seen = begin_stream(port, key)
    with client:
        started = time.monotonic()
        ask(port, key, "POST", "/v1/model-stops", {"agent": None, "reason": "measured"})
        while part := client.recv(65536):
            seen += part
        print(f"a stop cut a stream within {1000 * (time.monotonic() - started):.0f} ms: {b'model.stopped' in seen}")
    ask(port, key, "DELETE", "/v1/model-stops/*")


def begin_stream(port: int, key: str) -> tuple[socket.socket, bytes]:
    """A connection and its first events; whatever came when it was refused."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(request(key, {**BODY, "model": "slow/fake-model", "stream": True, "max_tokens": 9000}))
    seen = b""
    while seen.count(b"data:") < 5 and (part := client.recv(65536)):
        seen += part
    return client, seen


def ask(port: int, key: str, method: str, path: str, body: object = None) -> None:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers, method=method)):
        return


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    main()
