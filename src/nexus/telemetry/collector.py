"""One request to the operator's collector (OTLP over HTTP): traces and metrics alike."""

import asyncio
from collections.abc import Sequence

from nexus.kit import egress, http1

RETRIED = frozenset({429, 502, 503, 504})
_MOST_ANSWER = 4096


async def post(
    endpoint: str, *, headers: Sequence[tuple[str, str]], content_type: str, body: bytes, timeout_s: float
) -> tuple[int, str]:
    """The status (0: there was none) and what was wrong, without a credential in it."""
    target = egress.parse_url(endpoint)
    fields = {"Host": target.authority, "Content-Type": content_type, **dict(headers)}
    try:
        async with asyncio.timeout(timeout_s):
            answer = await http1.post(
                [target.host],
                port=target.port,
                server_name=target.host if target.scheme == "https" else None,
                path=target.path,
                fields=fields,
                body=body,
                max_answer=_MOST_ANSWER,
            )
    except (OSError, TimeoutError, http1.Broken) as error:
        return 0, type(error).__name__
    return answer.status, f"the collector answered {answer.status}"
