"""What the supervisor told the worker through its environment, read once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`door` and `token` are absent when no host stands behind (dev without one). `session_id`: the one session that is served
    here, where each has a worker of its own. Sizes in bytes, times in seconds."""

    source: Path
    entrypoint: str = ""
    instance_id: str = ""
    agent: str = "agent"
    version: str = "0"
    environment: str = "development"
    socket: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    door: str | None = None
    token: str | None = field(default=None, repr=False)
    session_id: str | None = None
    status_file: Path | None = None
    run_timeout_s: float = 8 * 3600.0
    concurrency: int | None = None
    on_message: str = "queue"
    limits: Mapping[str, int] = field(default_factory=dict)
    grace_s: float = 10.0
    max_body: int = 64 * 1024 * 1024
    health_path: str = "/health"
    traces: bool = False
    log_level: str = "INFO"
    loop: str = "auto"


def parse_settings(env: Mapping[str, str]) -> Settings:
    """Raises ValueError naming the variable that is wrong."""
    port = _number(env, "PORT", 0, int)
    return Settings(
        source=Path(env.get("NEXUS_SOURCE") or ".").absolute(),
        entrypoint=env.get("NEXUS_ENTRYPOINT", "").strip(),
        instance_id=env.get("NEXUS_INSTANCE_ID", ""),
        agent=env.get("NEXUS_AGENT") or "agent",
        version=env.get("NEXUS_AGENT_VERSION") or "0",
        environment=env.get("NEXUS_ENVIRONMENT") or "development",
        socket=env.get("NEXUS_SOCKET") or None,
        host=env.get("NEXUS_WORKER_HOST") or "127.0.0.1",
        port=port or None,
        door=env.get("NEXUS_DOOR") or None,
        token=env.get("NEXUS_TOKEN") or None,
        status_file=Path(env["NEXUS_STATUS_FILE"]) if env.get("NEXUS_STATUS_FILE") else None,
        run_timeout_s=_number(env, "NEXUS_RUN_TIMEOUT_S", 8 * 3600.0, float),
        concurrency=_number(env, "NEXUS_CONCURRENCY", 0, int) or None,
        on_message=env.get("NEXUS_ON_MESSAGE") or "queue",
        limits=_limits(env.get("NEXUS_LIMITS", "")),
        grace_s=_number(env, "NEXUS_GRACE_S", 10.0, float),
        max_body=_number(env, "NEXUS_MAX_BODY", 64 * 1024 * 1024, int),
        health_path=env.get("NEXUS_HEALTH_PATH") or "/health",
        traces=env.get("NEXUS_TRACES") == "1",
        log_level=(env.get("LOG_LEVEL") or "INFO").upper(),
        loop=env.get("NEXUS_LOOP") or "auto",
    )


def _limits(text: str) -> dict[str, int]:
    """From `memory=536870912 processes=1024`."""
    pairs = (part.partition("=") for part in text.split())
    return {name: int(value) for name, _, value in pairs if value.isdecimal()}


def _number(env: Mapping[str, str], name: str, default: N, kind: Callable[[str], N]) -> N:
    text = env.get(name)
    if not text:
        return default
    try:
        number = kind(text)
    except ValueError:
        raise ValueError(f"{name} is {text[:40]!r}, which is not a number") from None
    if not 0 <= number < 1e15:
        raise ValueError(f"{name} is {text[:40]!r}; it must be a number from 0 up")
    return number
