"""`/health` numbers: uptime, memory and CPU of this process, from /proc and the clock."""

import os
import time
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")


def show_uptime(seconds: float) -> str:
    """`2h 30m`, `3m 5s`, `12s`, `4d 1h`."""
    left = int(seconds)
    parts = []
    for name, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size}{name}")
            left %= size
        elif parts:
            break
    return " ".join(parts[:2]) or "0s"


def show_memory(count: int) -> str:
    return f"{round(count / 1024**2)}MB"


def resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE


class Vitals:
    """CPU is measured between two questions (the first one: since the start), as percent of one core."""

    def __init__(self) -> None:
        self._started = self._asked = time.monotonic()
        self._cpu = 0.0
        self._percent = 0.0

    def read(self, *, runs: int) -> dict[str, Any]:
        now, cpu = time.monotonic(), time.process_time()
        if now - self._asked >= 0.5 or not self._cpu:
            self._percent = 100 * (cpu - self._cpu) / max(now - self._asked, 0.001)
            self._asked, self._cpu = now, cpu
        memory = resident_bytes()
        return {
            "status": "healthy",
            "uptime": show_uptime(now - self._started),
            "requests_processed": runs,
            "memory_usage": show_memory(memory),
            "cpu_usage": f"{round(self._percent)}%",
            "uptime_s": round(now - self._started, 3),
            "memory_bytes": memory,
            "cpu_percent": round(self._percent, 1),
            "cpu_s": round(cpu, 3),
        }
