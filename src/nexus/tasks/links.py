"""Links with which a person answers a question without a key: `<ask id>.<until>.<signature>`. Pure.

Whoever has the link may answer, so it holds nothing else, ends by itself, and works once because a question has one answer.
"""

import base64
import hmac

from nexus.core import ids

LASTS_S = 30 * 86400.0


def sign(key: bytes, ask_id: str, *, opened_at: float, expires_at: float | None) -> str:
    """The token of a question; always the same one."""
    until = int(min(opened_at + LASTS_S, expires_at if expires_at is not None else opened_at + LASTS_S))
    return f"{ask_id}.{until}.{_signature(key, ask_id, until)}"


def read(key: bytes, token: str, *, now: float) -> str | None:
    """The id of the question, or None for a token that is not ours or whose time is over."""
    ask_id, _, rest = token.partition(".")
    until, _, signature = rest.partition(".")
    if not (ids.is_id(ask_id, ids.ASK) and until.isascii() and until.isdigit() and len(until) < 12 and signature.isascii()):
        return None
    if not hmac.compare_digest(signature, _signature(key, ask_id, int(until))):
        return None
    return ask_id if now <= int(until) else None


def _signature(key: bytes, ask_id: str, until: int) -> str:
    digest = hmac.digest(key, b"answer link\0" + f"{ask_id}.{until}".encode(), "sha256")
    return base64.urlsafe_b64encode(digest[:24]).decode()
