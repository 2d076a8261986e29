"""One line of an agent's log, the same from the node that reads it to the person who asks for it."""

from typing import NotRequired, TypedDict


class LogLine(TypedDict):
    """`at` is seconds since the epoch; `level` is debug, info, warning, error or critical."""

    at: float
    level: str
    message: str
    agent: str
    instance_id: str
    version: str
    environment: NotRequired[str]
    stream: NotRequired[str]
    run_id: NotRequired[str]
    session_id: NotRequired[str]
    logger: NotRequired[str]
    trace_id: NotRequired[str]
