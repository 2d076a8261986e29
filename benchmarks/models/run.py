"""The models door of a whole host beside the LiteLLM proxy, before the same scripted provider, with budgets and audit on.

    python benchmarks/models/run.py [--seconds 3] [--rounds 3] [--litellm VENV]

Wants `wrk` (Debian). LiteLLM is another project's proxy and lives in an environment of its own, whose folder `--litellm`
(or LITELLM) names:
    uv venv VENV && uv pip install -p VENV/bin/python 'litellm[proxy]'
Prints what each call costs in CPU (gateways; control and PostgreSQL, which count and audit), requests and streamed events a
second, the time added to a call alone, and the ratio; at last all of it as JSON.
"""

import argparse
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
import time
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NEXUS = [sys.executable, "-m", "nexus.cli.main"]
MODELS = """
providers:
  scripted:
    base_url: http://127.0.0.1:{port}/v1
    key: env:SCRIPTED_KEY
    models:
      fast: {{price: {{input: 0.15, output: 0.6}}, context: 128000}}
budgets:
  money: {{scope: tenant, unit: cost, period: month, limit: 100000}}
  tokens: {{scope: tenant, unit: tokens, period: day, limit: 900000000000}}
  calls: {{scope: tenant, unit: requests, period: minute, limit: 900000000}}
"""
LITELLM = """
model_list:
  - model_name: fast
    litellm_params: {{model: openai/fast, api_base: "http://127.0.0.1:{port}/v1", api_key: sk-scripted}}
general_settings: {{master_key: sk-bench}}
litellm_settings: {{drop_params: true}}
"""
SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {key}"
wrk.body = '{body}'
"""
RATES = (("calls", "whole", "rate"), ("events", "streams", "events_rate"))
ASKED = {
    "model": "fast",
    "messages": [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "word " * 80}],
}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=int, default=3)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--warm", type=int, default=3, help="seconds of load before anything is counted")
    options.add_argument("--connections", type=int, default=64)
    options.add_argument("--events", type=int, default=100, help="events of one stream")
    options.add_argument("--litellm", default=os.environ.get("LITELLM"), help="folder of LiteLLM's environment")
    given = options.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="nx-models-", dir="/tmp") as name:
        return compare(given, Path(name))


def compare(given: argparse.Namespace, folder: Path) -> int:
    provider_port, port = free_port(), free_port()
    provider = subprocess.Popen([sys.executable, str(HERE / "provider.py"), str(provider_port), str(given.events)])
    host, theirs = Host(folder / "home", port, provider_port), None
    try:
        wait_for(lambda: listens(provider_port), 10)
        host.start()
        sides: dict[str, dict[str, Any]] = {
            "provider alone": {"port": provider_port, "key": "x", "pids": {"gateways": [provider.pid]}},
            "nexus": {"port": port, "key": host.key, "pids": host.pids()},
        }
        if given.litellm:
            theirs = Litellm(Path(given.litellm), folder, provider_port)
            sides["litellm"] = {"port": theirs.port, "key": "sk-bench", "pids": {"gateways": theirs.pids()}}
        else:
            print("LiteLLM is left out: see --help")
        found = measure_all(given, folder, sides)
        report(given, found, host)
    finally:
        host.stop()
        if theirs is not None:
            theirs.stop()
        provider.kill()
        provider.wait()
    return 0


def measure_all(given: argparse.Namespace, folder: Path, sides: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sides in turn, so that what the machine does meanwhile hits all of them."""
    found: dict[str, dict[str, Any]] = {name: {"whole": [], "streams": [], "alone": []} for name in sides}
    for side in sides.values():
        load(folder, side, given, connections=4, seconds=given.warm)
        load(folder, side, given, connections=4, seconds=given.warm, stream=True)
    for _ in range(given.rounds):
        for name, side in sides.items():
            found[name]["whole"].append(load(folder, side, given, connections=given.connections))
        for name, side in sides.items():
            found[name]["streams"].append(load(folder, side, given, connections=given.connections, stream=True))
        for name, side in sides.items():
            found[name]["alone"].append(load(folder, side, given, connections=1, seconds=2))
    return found


def load(
    folder: Path, side: dict[str, Any], given: argparse.Namespace, *, connections: int, seconds: int = 0, stream: bool = False
) -> dict[str, float]:
    body = json.dumps({**ASKED, "stream": True} if stream else ASKED, separators=(",", ":"))
    script = folder / "load.lua"
    script.write_text(SCRIPT.format(key=side["key"], body=body))
    seconds = seconds or given.seconds
    before = {kind: cpu_s(pids) for kind, pids in side["pids"].items()}
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency", "-s", str(script),
         f"http://127.0.0.1:{side['port']}/v1/chat/completions"],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    ).stdout  # fmt: skip
    if failed := re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", done):
        print(f"  port {side['port']}: {failed[0]}")
    calls = max(1, int(re.search(r"(\d+) requests in", done)[1]))
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", done)[1])
    result = {
        "rate": rate,
        "p50_us": microseconds(re.search(r"50%\s+([\d.]+\w+)", done)[1]),
        "p99_us": microseconds(re.search(r"99%\s+([\d.]+\w+)", done)[1]),
    }
    if stream:
        result["events_rate"] = rate * (given.events + 2)
    for kind, pids in side["pids"].items():
        result[f"{kind}_cpu_us"] = (cpu_s(pids) - before[kind]) / calls * 1e6
    return result


def report(given: argparse.Namespace, found: dict[str, dict[str, Any]], host: "Host") -> None:
    middle = {
        name: {part: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]} for part, rounds in parts.items()}
        for name, parts in found.items()
    }
    columns = (("calls/s", 8), ("p99 ms", 7), ("CPU µs", 7), ("events/s", 9), ("CPU µs/event", 13), ("c=1 p50 µs", 11))
    print(f"{'side':<15}", *(f"{name:>{width}}" for name, width in (*columns, ("added µs", 9))))
    alone = middle["provider alone"]["alone"]["p50_us"]
    for name, parts in middle.items():
        whole, streams = parts["whole"], parts["streams"]
        print(
            f"{name:15} {whole['rate']:8.0f} {whole['p99_us'] / 1000:7.1f} {whole['gateways_cpu_us']:7.0f} "
            f"{streams['events_rate']:9.0f} {streams['gateways_cpu_us'] / (given.events + 2):13.1f} "
            f"{parts['alone']['p50_us']:11.0f} {parts['alone']['p50_us'] - alone:9.0f}"
        )
    ours = middle["nexus"]
    print(
        f"counting and auditing a call: control {ours['whole']['control_cpu_us']:.0f} µs, "
        f"PostgreSQL {ours['whole']['postgres_cpu_us']:.0f} µs"
    )
    if "litellm" in middle:
        theirs = middle["litellm"]
        rates = [(what, ours[part][key], theirs[part][key]) for what, part, key in RATES]
        told = [f"{what} {mine / other:.1f} ×" for what, mine, other in rates if other]
        print(f"nexus / litellm: {', '.join(told)}")
        mine = sum(value for key, value in ours["whole"].items() if key.endswith("_cpu_us"))
        print(f"CPU of a call, all processes of each side: litellm / nexus {theirs['whole']['gateways_cpu_us'] / mine:.1f} ×")
    verdict = host.cli("audit", "verify", "--json")
    print(f"audit: {verdict}")
    print(json.dumps({"median": middle, "rounds": found, "cores": len(os.sched_getaffinity(0)), "audit": verdict}))


class Host:
    """A whole host with the scripted provider, budgets and prices."""

    def __init__(self, home: Path, port: int, provider_port: int) -> None:
        self.home, self.port = home, port
        home.mkdir(mode=0o700)
        (home / "models.yaml").write_text(MODELS.format(port=provider_port))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NEXUS_", "OPENAI_", "ANTHROPIC_"))}
        own = {"NEXUS_HOME": str(home), "NEXUS_PORT": str(port), "SCRIPTED_KEY": "sk-scripted", "NO_COLOR": "1"}
        self.env = kept | own

    def start(self) -> None:
        subprocess.run([*NEXUS, "up", "-d"], env=self.env, check=True, stdout=subprocess.DEVNULL, timeout=90)

    @property
    def key(self) -> str:
        return (self.home / "admin.key").read_text().strip()

    def cli(self, *arguments: str) -> Any:
        done = subprocess.run([*NEXUS, *arguments], env=self.env, capture_output=True, text=True, timeout=300, check=False)
        return json.loads(done.stdout) if done.stdout.strip() else done.stderr

    def pids(self) -> dict[str, list[int]]:
        """By part: gateways, control, and PostgreSQL with its backends."""
        record = json.loads((self.home / "host.json").read_text())
        found: dict[str, list[int]] = {"gateways": [], "control": [], "postgres": []}
        for child in record["processes"]:
            part = "gateways" if child["name"].startswith("gateway") else child["name"]
            if part in found:
                found[part] += family(child["pid"])
        return found

    def stop(self) -> None:
        subprocess.run([*NEXUS, "down", "--force"], env=self.env, check=False, stdout=subprocess.DEVNULL, timeout=90)


class Litellm:
    """LiteLLM's proxy with as many workers as there are cores. Its own command gives a worker five seconds to import;
    uvicorn waits longer here."""

    def __init__(self, venv: Path, folder: Path, provider_port: int) -> None:
        self.port = free_port()
        (folder / "litellm.yaml").write_text(LITELLM.format(port=provider_port))
        workers = str(len(os.sched_getaffinity(0)))
        command = [str(venv / "bin/uvicorn"), "litellm.proxy.proxy_server:app", "--host", "127.0.0.1", "--port", str(self.port)]
        config = {"CONFIG_FILE_PATH": str(folder / "litellm.yaml"), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        environ = {**os.environ, **config, "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
        self.log = (folder / "litellm.log").open("wb")
        self.child = subprocess.Popen(
            [*command, "--workers", workers, "--timeout-worker-healthcheck", "300", "--log-level", "error"],
            stdout=self.log, stderr=self.log, env=environ, start_new_session=True,
        )  # fmt: skip
        wait_for(self._answers, 300)

    def _answers(self) -> bool:
        if self.child.poll() is not None:
            raise SystemExit("LiteLLM ended: " + Path(self.log.name).read_text()[-2000:])
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/chat/completions", json.dumps(ASKED).encode())
        request.add_header("Authorization", "Bearer sk-bench")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def pids(self) -> list[int]:
        return family(self.child.pid)

    def stop(self) -> None:
        os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        self.log.close()


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def cpu_s(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_for(true: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit(f"a side did not start within {seconds:g} s")
        time.sleep(0.1)


def microseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 6e7}[unit]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
