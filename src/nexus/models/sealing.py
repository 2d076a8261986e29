"""Providers' keys at rest: AES-256-GCM under a key of the platform's own, bound to the provider's name."""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nexus.core import errors

_NONCE_BYTES = 12


def seal(key: bytes, provider: str, text: str) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text.encode(), _place(provider))


def unseal(key: bytes, provider: str, sealed: bytes) -> str:
    """Raises `Internal` (`provider.key_unreadable`) when it was sealed with another key or for another provider."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _place(provider)).decode()
    except (InvalidTag, ValueError) as error:
        raise errors.Internal(
            f"the stored key of provider {provider} cannot be read",
            code="provider.key_unreadable",
            next_step=f"give it again: nexus models provider set {provider} --key -",
        ) from error


def _place(provider: str) -> bytes:
    return b"model provider\0" + provider.encode()
