"""Answers kept for another time: under an `Idempotency-Key`, and of deployments that cache. Bounded, in this process' memory.

Keys are the caller's to choose and never cross tenants; what is kept is what the client was sent, without its framing.
"""

import collections
import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from nexus.core import errors
from nexus.gateway import http1, wishes

LONGEST_KEPT = 1024 * 1024
_KEY_TTL_S = 3600.0
_MOST_KEYS = 10_000
_MOST_KEY_BYTES = 64 * 1024 * 1024
_OVERHEAD = 500


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: tuple[http1.Header, ...]
    body: bytes
    at: float

    @property
    def size(self) -> int:
        return len(self.body) + sum(len(name) + len(value) for name, value in self.headers) + _OVERHEAD


def digest(parts: tuple[bytes, ...]) -> bytes:
    """SHA-256 of parts that cannot run into each other."""
    found = hashlib.sha256()
    for part in parts:
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.digest()


class Cache:
    """Least recently used answers of one deployment, up to a number of bytes and an age."""

    def __init__(self) -> None:
        self._answers: collections.OrderedDict[Hashable, Answer] = collections.OrderedDict()
        self.size = 0

    def find(self, key: Hashable, ttl_s: float, now: float) -> Answer | None:
        answer = self._answers.get(key)
        if answer is None:
            return None
        if now - answer.at > ttl_s:
            self._drop(key)
            return None
        self._answers.move_to_end(key)
        return answer

    def put(self, key: Hashable, answer: Answer, limits: wishes.Cache) -> None:
        if answer.size > limits.size:
            return
        self._drop(key)
        self._answers[key] = answer
        self.size += answer.size
        while self.size > limits.size:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: Hashable) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            self.size -= answer.size


Key = tuple[str, str, bytes]
"""Tenant, deployment, and what the caller chose."""


@dataclass(slots=True)
class Use:
    """What became of a key: its run is under way, or `done` with an `answer` (None: too large to keep)."""

    fingerprint: bytes
    at: float
    done: bool = False
    answer: Answer | None = None


class Keys:
    """What became of each `Idempotency-Key`, for an hour. A key in use is never forgotten before its run ends.

    `settling`: what an older process knows of keys is not all here yet. `on_change` is told of each key whose run begins or ends.
    """

    def __init__(self) -> None:
        self.settling = False
        self.on_change: Callable[[Key], None] | None = None
        self._uses: collections.OrderedDict[Key, Use] = collections.OrderedDict()
        self._size = 0

    def begin(self, key: Key, fingerprint: bytes, now: float) -> Answer | None:
        """The answer to replay, or None when the run is to be made. Raises `Conflict` when it is being made, when the key was
        used for another body, or when its answer was too large to keep."""
        self._forget(now)
        use = self._uses.get(key)
        if use is None:
            self._uses[key] = Use(fingerprint, now)
            self._tell(key)
            return None
        if use.fingerprint != fingerprint:
            raise errors.Conflict(
                "this Idempotency-Key was used for another request",
                code="idempotency.mismatch",
                next_step="send a fresh key with a new request, the same body with a repeated one",
            )
        if not use.done:
            raise errors.Conflict(
                "the run of this Idempotency-Key is still under way",
                code="idempotency.in_flight",
                retry_after_s=1,
                next_step="ask again after Retry-After: the same answer will be sent to you",
            )
        if use.answer is None:
            raise errors.Conflict(
                "the run of this Idempotency-Key is over, and its answer was too large to be kept",
                code="idempotency.not_kept",
                next_step="see `GET /v1/runs` for how it ended; send a fresh key to run it again",
            )
        return use.answer

    def finish(self, key: Key, answer: Answer | None) -> None:
        use = self._uses.get(key)
        if use is None:
            return
        use.done, use.answer = True, answer
        self._size += answer.size if answer is not None else 0
        self._tell(key)

    def release(self, key: Key) -> None:
        """The run failed before it had an effect that must not be repeated: the key is as if it had never been used."""
        self._drop(key)
        self._tell(key)

    def uses(self) -> list[tuple[Key, Use]]:
        """All that is known now, oldest first."""
        return list(self._uses.items())

    def find(self, key: Key) -> Use | None:
        return self._uses.get(key)

    def adopt(self, key: Key, use: Use | None) -> None:
        """What another process knows of a key; None: it is free again."""
        self._drop(key)
        if use is not None:
            self._uses[key] = use
            self._size += use.answer.size if use.answer is not None else 0

    def _tell(self, key: Key) -> None:
        if self.on_change is not None:
            self.on_change(key)

    def _drop(self, key: Key) -> None:
        use = self._uses.pop(key, None)
        if use is not None and use.answer is not None:
            self._size -= use.answer.size

    def _forget(self, now: float) -> None:
        while self._uses:
            key, use = next(iter(self._uses.items()))
            crowded = len(self._uses) >= _MOST_KEYS or self._size > _MOST_KEY_BYTES
            if not use.done:
                self._uses.move_to_end(key)
                if crowded and not any(other.done for other in self._uses.values()):
                    raise errors.Exhausted("too many runs with an Idempotency-Key are under way", code="limit.idempotency")
                if not crowded:
                    return
            elif crowded or now - use.at > _KEY_TTL_S:
                self._drop(key)
            else:
                return
