"""Envelope encryption: each value under a data key of its own (AES-256-GCM), each data key under the master key.

The place a value belongs to is authenticated with it, so a row copied to another tenant, agent or name does not open.
Source: NIST SP 800-38D (96-bit random nonces; a data key encrypts once, a master key far fewer than 2^32 times).
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nexus.core import errors
from nexus.ports import vault

KEY_BYTES = 32
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class MasterKey:
    """256 bits and the id that names them in every row they wrap."""

    value: bytes = field(repr=False)

    @property
    def id(self) -> str:
        return "mk_" + hashlib.sha256(b"nexus master key id\0" + self.value).hexdigest()[:16]


def parse_master_key(text: str, *, where: str) -> MasterKey:
    """A key from base64 or hexadecimal text, or `Invalid` (code `master_key.invalid`) naming where it came from."""
    cleaned = text.strip()
    try:
        value = bytes.fromhex(cleaned) if len(cleaned) == 2 * KEY_BYTES else base64.b64decode(cleaned, validate=True)
    except (ValueError, binascii.Error):
        value = b""
    if len(value) != KEY_BYTES:
        raise errors.Invalid(
            f"the master key in {where} is not {KEY_BYTES} bytes of base64 or hexadecimal",
            code="master_key.invalid",
            next_step="restore the key this host's secrets were sealed with; a new one is made by: openssl rand -base64 32",
        )
    return MasterKey(value)


def seal(value: bytes, *, master: MasterKey, place: str, random: Callable[[int], bytes] = os.urandom) -> vault.Sealed:
    """`place` is what the value belongs to (`tenant/agent/name`); it is needed to open it."""
    data_key = random(KEY_BYTES)
    return vault.Sealed(
        sealed=_encrypt(data_key, value, place.encode(), random),
        wrapped_key=_encrypt(master.value, data_key, master.id.encode(), random),
        key_id=master.id,
    )


def unseal(sealed: vault.Sealed, *, ring: Mapping[str, MasterKey], place: str) -> bytes:
    """The value, or `Unavailable` (`master_key.missing`) or `Internal` (`secret.damaged`)."""
    return _decrypt(_data_key(sealed, ring), sealed.sealed, place.encode())


def rewrap(
    sealed: vault.Sealed, *, ring: Mapping[str, MasterKey], master: MasterKey, random: Callable[[int], bytes] = os.urandom
) -> vault.Sealed:
    """The same value under another master key; only the data key is encrypted anew."""
    wrapped = _encrypt(master.value, _data_key(sealed, ring), master.id.encode(), random)
    return vault.Sealed(sealed=sealed.sealed, wrapped_key=wrapped, key_id=master.id)


def _data_key(sealed: vault.Sealed, ring: Mapping[str, MasterKey]) -> bytes:
    if (master := ring.get(sealed.key_id)) is None:
        raise errors.Unavailable(
            f"this secret is sealed with master key {sealed.key_id}, which this host does not have",
            code="master_key.missing",
            cause=f"the host's master key is {', '.join(ring) or 'absent'}",
            next_step="put the former key back (master.key in the home, or NEXUS_MASTER_KEY), or set the secrets again",
        )
    return _decrypt(master.value, sealed.wrapped_key, sealed.key_id.encode())


def _encrypt(key: bytes, value: bytes, place: bytes, random: Callable[[int], bytes]) -> bytes:
    nonce = random(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, value, place)


def _decrypt(key: bytes, blob: bytes, place: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(blob[:_NONCE_BYTES], blob[_NONCE_BYTES:], place)
    except (InvalidTag, ValueError):
        raise errors.Internal(
            "a stored secret does not open",
            code="secret.damaged",
            cause="it was changed, or copied from another place",
            next_step="set the secret again",
        ) from None
