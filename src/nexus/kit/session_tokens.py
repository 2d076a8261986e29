"""Tokens of session workers: `nxe_<instance>.<session>.<expiry>.<MAC>`, made from the instance's token and good for a while.

Whoever knows the stored form of the instance's token (its SHA-256) can check one without a look-up of its own, so nothing is
stored for a session, and a session's worker learns nothing that opens another session. The MAC is HMAC-SHA-256 (RFC 2104).
"""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass

PREFIX = "nxe_"
_LONGEST = 600
_DOMAIN = b"nexus session token\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says; believed only once `verify` agreed. `expires_at` is in Unix seconds."""

    instance_id: str
    session_id: str
    expires_at: int


def mint(token_hash: str, *, instance_id: str, session_id: str, expires_at: float) -> str:
    """`token_hash`: `keys.hash_key` of the instance's own token."""
    session = base64.urlsafe_b64encode(session_id.encode()).rstrip(b"=").decode()
    body = f"{instance_id}.{session}.{int(expires_at)}"
    return f"{PREFIX}{body}.{_mac(token_hash, body)}"


def parse(token: str) -> Claims | None:
    """What it claims, or None when it is not of this form."""
    if not token.startswith(PREFIX) or len(token) > _LONGEST or not token.isascii():
        return None
    parts = token.removeprefix(PREFIX).split(".")
    if len(parts) != 4 or not parts[2].isdigit() or len(parts[2]) > 12:
        return None
    try:
        session = base64.b64decode(parts[1] + "=" * (-len(parts[1]) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    return Claims(instance_id=parts[0], session_id=session, expires_at=int(parts[2]))


def verify(token: str, token_hash: str, *, now: float) -> bool:
    """Whether it was made from that instance's token and is still good."""
    claims = parse(token)
    if claims is None or claims.expires_at <= now:
        return False
    body, _, mac = token.removeprefix(PREFIX).rpartition(".")
    return hmac.compare_digest(mac, _mac(token_hash, body))


def _mac(token_hash: str, body: str) -> str:
    digest = hmac.new(token_hash.encode(), _DOMAIN + body.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
