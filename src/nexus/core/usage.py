"""What sessions used, to be charged by: rows that only grow, told until they were stored."""

from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """`WORKER`: CPU and memory of a session's own workers. `NETWORK`: bytes that passed its way out."""

    WORKER = "worker"
    NETWORK = "network"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """One part of a session's use on one instance, counted since `began_at` (Unix seconds); a later row with the same first four
    fields replaces it. Bytes are out of the box (`bytes_out`) and into it."""

    instance_id: str
    session_id: str
    part: Part
    began_at: float
    tenant: str
    agent: str
    environment: str
    version: str
    cpu_s: float = 0.0
    memory_byte_seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
