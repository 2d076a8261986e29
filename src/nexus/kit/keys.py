"""API keys and tokens: 256 random bits behind a readable prefix, stored and compared as a keyed hash of the whole.

The secret is random, so a fast hash is right (OWASP ASVS 2.4 concerns passwords). A CRC lets a client spot a typing error.
"""

import hashlib
import os
import zlib
from collections.abc import Callable

API_KEY, INSTANCE_TOKEN, SERVICE_TOKEN = "nxk", "nxi", "nxs"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def new_key(prefix: str = API_KEY, *, random_bytes: Callable[[int], bytes] = os.urandom) -> str:
    """A fresh key: `nxk_` + 43 letters + 6 letters of checksum."""
    secret = _base62(int.from_bytes(random_bytes(32), "big"), 43)
    return f"{prefix}_{secret}{_checksum(secret)}"


def has_key_shape(key: str) -> bool:
    prefix, _, rest = key.partition("_")
    return (
        prefix in (API_KEY, INSTANCE_TOKEN, SERVICE_TOKEN)
        and len(rest) == 49
        and rest.isascii()
        and _checksum(rest[:43]) == rest[43:]
    )


def hash_key(key: str) -> str:
    """The form that is stored and looked up: SHA-256 of the whole key, in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _checksum(secret: str) -> str:
    return _base62(zlib.crc32(secret.encode()), 6)


def _base62(number: int, length: int) -> str:
    letters = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        letters.append(_ALPHABET[digit])
    return "".join(reversed(letters))
