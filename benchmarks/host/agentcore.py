"""The same echo under the AgentCore SDK's own server, in an environment of its own, and under our whole host, in turn: with one
process for all sessions of an instance, as there, and with a box of its own for every session (`SESSIONS` of them).

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
IN_SESSIONS = """
local path = "{path}"
request = function()
  wrk.headers["Nexus-Session-Id"] = "bench-" .. math.random({sessions})
  return wrk.format(nil, path)
end
"""
SESSIONS = 64
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
    folder: Path, *, port: int, key: str, shared: str, boxed: str, theirs: int, rounds: int, seconds: float, connections: int
) -> dict[str, list[float]]:
    """Requests per second of each side, turn by turn. `shared` and `boxed` are the paths of our two agents."""
    plain, sessions = folder / "echo.lua", folder / "sessions.lua"
    plain.write_text(LUA.format(key=key, filling=FILLING))
    sessions.write_text(plain.read_text() + IN_SESSIONS.format(path=boxed, sessions=SESSIONS))
    found: dict[str, list[float]] = {"shared": [], "boxed": [], "agentcore": []}
    with_sessions = shutil.which("wrk") is not None
    if with_sessions:
        _rate(port, boxed, key, sessions, seconds, connections)  # every session is begun
    for _ in range(rounds):
        found["shared"].append(_rate(port, shared, key, plain, seconds, connections))
        if with_sessions:
            found["boxed"].append(_rate(port, boxed, key, sessions, seconds, connections))
        found["agentcore"].append(_rate(theirs, "/invocations", key, plain, seconds, connections))
    return found


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
