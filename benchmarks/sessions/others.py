"""The other side: a fresh process in bubblewrap or runc that imports LangGraph and answers once, as hosts without forks do."""

import json
import shutil
import subprocess
import time
from pathlib import Path

PROGRAM = """
from langgraph.graph import END, START, StateGraph
graph = StateGraph(dict)
graph.add_node("echo", lambda state: {"said": state["input"]})
graph.add_edge(START, "echo")
graph.add_edge("echo", END)
print(graph.compile().invoke({"input": "hello"}), flush=True)
"""


def has(program: str) -> bool:
    return shutil.which(program) is not None


def in_nothing(python: Path) -> float:
    """Milliseconds from the start of a plain process to its answer."""
    return _timed([str(python), "-c", PROGRAM])


def in_bubblewrap(python: Path) -> float:
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
    return _timed([*command, "--", str(python), "-c", PROGRAM])


def in_runc(python: Path, bundle: Path) -> float:
    """The same as an OCI container that sees this machine's programs and the environment, read-only."""
    write_bundle(bundle, [str(python), "-c", PROGRAM], [python.parents[1], python.resolve().parents[1]])
    name = f"nexus-bench-{time.monotonic_ns()}"
    return _timed(["runc", "run", "--bundle", str(bundle), name])


def write_bundle(bundle: Path, arguments: list[str], needed: list[Path]) -> None:
    rootfs = bundle / "rootfs"
    rootfs.mkdir(parents=True, exist_ok=True)
    seen = [path for path in (*map(Path, ("/usr", "/bin", "/lib", "/lib64", "/etc")), *needed) if path.is_dir()]
    namespaces = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
        *(
            {"destination": str(path), "type": "bind", "source": str(path), "options": ["rbind", "ro"]}
            for path in dict.fromkeys(seen)
        ),
    ]
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False, "user": {"uid": 65534, "gid": 65534}, "args": arguments, "cwd": "/", "noNewPrivileges": True,
            "env": ["PATH=/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8"],
        },
        "root": {"path": "rootfs", "readonly": False},
        "mounts": mounts,
        "linux": {"namespaces": namespaces},
    }  # fmt: skip
    (bundle / "config.json").write_text(json.dumps(config))


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if process.stdout is None or process.stderr is None:
            raise RuntimeError("the program has no output")
        line = process.stdout.readline()
        took = (time.perf_counter() - began) * 1000
        if b"hello" not in line:
            raise RuntimeError(f"{command[0]} failed: {process.stderr.read().decode()[-400:]}")
    return took
