"""Secrets of triggers as they are stored: AES-256-GCM under a key of the platform, bound to the trigger they belong to."""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nexus.core import errors


def seal(key: bytes, owner: str, secret: str) -> bytes:
    nonce = os.urandom(12)
    return nonce + AESGCM(key).encrypt(nonce, secret.encode(), owner.encode())


def unseal(key: bytes, owner: str, sealed: bytes) -> str:
    """Raises `Internal` (`trigger.unreadable`) for what was sealed under another key or for another trigger."""
    try:
        return AESGCM(key).decrypt(sealed[:12], sealed[12:], owner.encode()).decode()
    except (InvalidTag, ValueError) as error:
        raise errors.Internal(
            "the secret of this trigger cannot be read",
            code="trigger.unreadable",
            cause="it was stored under another master key",
            next_step="delete the trigger and create it again",
        ) from error
