"""The same echo under the AgentCore SDK's own server, in an environment of its own, and under our whole host, in turn.

`python benchmarks/host/run.py --only agentcore`; NEXUS_BENCH_AGENTCORE names an interpreter that has `bedrock-agentcore`
already, else one is made (PyPI). Load by wrk where it is installed, else by `load`.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import load

APP = """
import sys
from bedrock_agentcore import BedrockAgentCoreApp
app = BedrockAgentCoreApp()

@app.entrypoint
def invoke(payload):
    return {"output": payload["input"]}

app.run(port=int(sys.argv[1]), host="127.0.0.1", access_log=False, log_level="error")
"""
LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {key}"
wrk.body = '{{"input": "{filling}"}}'
"""
FILLING = "x" * 100


def find_python(folder: Path) -> Path:
    """An interpreter with the SDK: the one named in NEXUS_BENCH_AGENTCORE, or a fresh environment."""
    if named := os.environ.get("NEXUS_BENCH_AGENTCORE"):
        return Path(named)
    print("installing bedrock-agentcore into an environment of its own")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "agentcore")], check=True)
    python = folder / "agentcore/bin/python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", "bedrock-agentcore"], check=True, stderr=subprocess.DEVNULL)
    return python


def start(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    python = find_python(folder)
    app = folder / "agentcore_app.py"
    app.write_text(APP)
    return subprocess.Popen([str(python), str(app), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def compare(
    folder: Path, *, ours: tuple[int, str, str], theirs: int, rounds: int, seconds: float, connections: int
) -> tuple[list[float], list[float]]:
    """Requests per second of both sides, turn by turn. `ours` is port, path and key."""
    port, path, key = ours
    script = folder / "echo.lua"
    script.write_text(LUA.format(key=key, filling=FILLING))
    mine, other = [], []
    for _ in range(rounds):
        mine.append(_rate(port, path, key, script, seconds, connections))
        other.append(_rate(theirs, "/invocations", key, script, seconds, connections))
    return mine, other


def _rate(port: int, path: str, key: str, script: Path, seconds: float, connections: int) -> float:
    if shutil.which("wrk") is None:
        body = b'{"input": "%b"}' % FILLING.encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return load.drive("127.0.0.1", port, head.encode() + body, connections=connections, seconds=seconds).per_second
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(script), f"http://127.0.0.1:{port}{path}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    if failed := re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", told):
        print(f"  port {port}: {failed[0]}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1])  # type: ignore[index]


def ratio(mine: list[float], other: list[float]) -> float:
    """The median of the turns' ratios."""
    return statistics.median(one / two for one, two in zip(mine, other, strict=True))


def wait_until_gone(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
