"""Tokens of instances: derived from the instance's id under a key of the platform, so none is stored and none is lost."""

import hashlib
import hmac

from nexus.kit import keys


def instance_token(key: bytes, instance_id: str) -> str:
    """The same `nxi_…` for the same instance, for as long as the platform key lives."""
    digest = hmac.new(key, b"instance token\0" + instance_id.encode(), hashlib.sha256).digest()
    return keys.new_key(keys.INSTANCE_TOKEN, random_bytes=lambda _: digest)
