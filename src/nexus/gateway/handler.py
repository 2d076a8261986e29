"""What a kind of request means, as an exchange asks for it. Each door has its handler (`doors`, `runs_door`, `models_door`)."""

from enum import Enum
from typing import TYPE_CHECKING

from nexus.core import errors
from nexus.gateway import coding, http1

if TYPE_CHECKING:
    from nexus.gateway.exchange import Exchange


class Phase(Enum):
    QUEUED = "queued"
    COLLECTING = "collecting"
    WAITING = "waiting"
    DIALING = "dialing"
    RELAYING = "relaying"
    TUNNEL = "tunnel"
    DONE = "done"


class Handler:
    """What one kind of request does; made for one exchange. The defaults suit a door that answers by itself.

    `collects`: it needs the whole body before `open`. `rewrites`: `see` and `last` may change the answer's body;
    `watches`: `watch` is shown each part of it. `compression`: `auto`, `gzip` (event streams too) or `none`.
    """

    collects = False
    compression = "auto"
    rewrites = False
    watches = False

    def __init__(self, exchange: "Exchange") -> None:
        self.exchange = exchange
        self.call = exchange.call
        self.world = exchange.world
        self.max_body_bytes = exchange.world.table.max_body_bytes

    def expander(self) -> coding.Expander | None:
        """What a coded body must go through before it is sent on; None sends it as it came. May raise."""
        return None

    def open(self) -> None:
        """Begin: answer, wait, or connect somewhere. With `collects`, called when the body is whole."""
        raise NotImplementedError

    def request_head(self, framing: bytes) -> bytes:
        """The head to send upstream; `framing` is the ready Content-Length or Transfer-Encoding line."""
        raise NotImplementedError

    def answer_headers(self, status: int, headers: list[http1.Header]) -> list[http1.Header]:
        """The end-to-end headers for the client, without framing. May raise BadAnswer."""
        return headers

    def tunnel_headers(self, headers: list[http1.Header]) -> list[http1.Header]:
        """The end-to-end headers of a 101 for the client. May raise BadAnswer."""
        return headers

    def watch(self, part: bytes) -> None: ...

    def see(self, part: bytes) -> bytes:
        return part

    def last(self) -> bytes:
        return b""

    def body_moved(self) -> None:
        """A part of the request's body came while the exchange relays."""

    def unreachable(self, error: Exception) -> None:
        """No connection could be made; nothing was sent. Connect elsewhere, wait, or raise the error to answer."""
        raise errors.Unavailable("nothing answers there", code="upstream.failed", retry_after_s=1) from error

    def repeat(self) -> bool:
        """The connection broke before any answer, and the request is at hand. True when it is being sent elsewhere."""
        return False

    def another_try(self) -> bool:
        """What was answered cannot be passed on, and nothing of it was. True when the request is being sent again."""
        return False

    def expired(self) -> None:
        """The exchange's deadline has passed."""
        self.exchange.fail(errors.Exhausted("no answer came in time", code="run.timeout"))

    def ask_why(self, reason: str) -> bool:
        """The answer broke off before it began. True: this handler finds out why, and fails the exchange itself."""
        return False

    def broken(self, reason: str, *, lost: bool) -> errors.NexusError:
        """The error for an answer that broke off (`lost`) or breaks the rules."""
        return errors.Unavailable(reason, code="upstream.failed")

    def close(self, *, outcome: str, status: int, code: str) -> None:
        """Called exactly once, when the exchange is over: give back, record."""
