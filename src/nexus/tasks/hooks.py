"""Who sent an inbound webhook: signatures of Standard Webhooks, GitHub, Stripe, and any HMAC in a header. Pure.

Sources: https://www.standardwebhooks.com (1.0); https://docs.github.com/webhooks (X-Hub-Signature-256);
https://docs.stripe.com/webhooks (Stripe-Signature).
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass

from nexus.core import errors
from nexus.wire import triggers

TOLERANCE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a verified message says of itself: `id` is the same for a repeated delivery, `type` what it is about."""

    id: str | None = None
    type: str | None = None


def verify(hook: triggers.HookParams, secret: str, headers: Mapping[str, str], body: bytes, *, now: float) -> Sent:
    """`headers` have lower-case names. Raises `Unauthenticated` (`hook.bad_signature`), which never says what would be right."""
    check = {"standard": _standard, "github": _github, "stripe": _stripe, "hmac": _hmac}[hook.scheme]
    return check(hook, secret, headers, body, now)


def check_secret(scheme: str, secret: str) -> None:
    """Raises `Invalid` (`hook.bad_secret`) for a secret that this scheme cannot use."""
    if scheme != "standard":
        return
    try:
        long_enough = len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) >= 16
    except (ValueError, binascii.Error):
        long_enough = False
    if not (secret.startswith("whsec_") and long_enough):
        raise errors.Invalid(
            "this is not a secret of Standard Webhooks",
            code="hook.bad_secret",
            next_step="give whsec_ and the base64 of 24 to 64 random bytes, or none to have one made",
        )


def _standard(hook: triggers.HookParams, secret: str, headers: Mapping[str, str], body: bytes, now: float) -> Sent:
    message_id, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    _check_time(stamp, now)
    if not message_id:
        raise _refused("it has no webhook-id")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = b".".join([message_id.encode("utf-8", "replace"), stamp.encode(), body])
    expected = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    given = [entry.removeprefix("v1,") for entry in headers.get("webhook-signature", "").split() if entry.startswith("v1,")]
    _check_any(given, expected)
    return Sent(id=message_id, type=_text_in(body, "type"))


def _github(hook: triggers.HookParams, secret: str, headers: Mapping[str, str], body: bytes, now: float) -> Sent:
    expected = "sha256=" + hmac.digest(secret.encode(), body, "sha256").hex()
    _check_any([headers.get("x-hub-signature-256", "")], expected)
    return Sent(id=headers.get("x-github-delivery"), type=headers.get("x-github-event"))


def _stripe(hook: triggers.HookParams, secret: str, headers: Mapping[str, str], body: bytes, now: float) -> Sent:
    parts = [part.strip().partition("=") for part in headers.get("stripe-signature", "").split(",")]
    stamp = next((value for name, _, value in parts if name == "t"), "")
    _check_time(stamp, now)
    expected = hmac.digest(secret.encode(), stamp.encode() + b"." + body, "sha256").hex()
    _check_any([value for name, _, value in parts if name == "v1"], expected)
    return Sent(id=_text_in(body, "id"), type=_text_in(body, "type"))


def _hmac(hook: triggers.HookParams, secret: str, headers: Mapping[str, str], body: bytes, now: float) -> Sent:
    digest = hmac.new(secret.encode(), body, getattr(hashlib, hook.algorithm)).digest()
    expected = hook.prefix + (digest.hex() if hook.encoding == "hex" else base64.b64encode(digest).decode())
    _check_any([headers.get((hook.header or "").lower(), "")], expected)
    return Sent(id=None if hook.id_header is None else headers.get(hook.id_header.lower()))


def _check_time(stamp: str, now: float) -> None:
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 12 and abs(now - int(stamp)) <= TOLERANCE_S):
        raise _refused("its timestamp is absent or more than five minutes away")


def _check_any(given: list[str], expected: str) -> None:
    """Every one is compared, so that time tells nothing."""
    found = [hmac.compare_digest(entry.encode("utf-8", "replace"), expected.encode()) for entry in given[:20]]
    if not any(found):
        raise _refused("its signature is absent or not the right one")


def _text_in(body: bytes, name: str) -> str | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) and len(found) <= 500 else None


def _refused(why: str) -> errors.Unauthenticated:
    return errors.Unauthenticated(
        "this webhook is not taken", code="hook.bad_signature", cause=why, next_step="sign it with the trigger's secret"
    )
