"""What every instance of a node shares: built once by `node`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nexus.core import instances
from nexus.drivers.process import instance_sessions, launcher, log_writer, paths, preparation
from nexus.kit import backoff, egress

PAUSES = backoff.Backoff(first_s=0.5, longest_s=30.0, least_s=0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """`on_change` hears each status."""

    place: Callable[[str], paths.InstancePaths]
    logs: Callable[[instances.InstanceSpec], log_writer.LogWriter]
    preparation: preparation.Preparation
    launcher: launcher.Launcher
    doors: Path
    missing: Callable[[], Sequence[str]]
    allowance: egress.Allowance = field(default_factory=egress.Allowance)
    on_change: Callable[[instances.InstanceStatus], None]
    sessions: instance_sessions.Shared
    pauses: backoff.Backoff = PAUSES
    grace_s: float = 10.0
    clock: Callable[[], float] = time.time
