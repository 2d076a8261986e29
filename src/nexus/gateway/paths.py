"""Which door a path leads to: the whole public surface of the gateway in one function."""

from nexus.core import names
from nexus.gateway.call import Door, Match

POST, GET = frozenset({b"POST"}), frozenset({b"GET", b"HEAD"})
MODEL_CALLS = frozenset(
    {
        b"/v1/chat/completions", b"/v1/completions", b"/v1/responses", b"/v1/embeddings",
        b"/v1/messages", b"/v1/messages/count_tokens",
    }
)  # fmt: skip
_PUBLIC = (b"/docs", b"/openapi.json", b"/console")
_SIGNED = (b"/asks", b"/hooks")
_CONTROL = (b"/v1", b"/agents", b"/tasks", b"/metrics", b"/door")
HEALTH = Match(door=Door.HEALTH, methods=GET, public=True)
MODEL = Match(door=Door.MODEL, methods=POST)
CONTROL = Match(door=Door.CONTROL, methods=None)
PUBLIC = Match(door=Door.CONTROL, methods=None, public=True)
SIGNED = Match(door=Door.CONTROL, methods=None, public=True, signed=True)


def find(path: bytes, *, inside: bool) -> Match | None:
    """The door of a path, None when there is none. `/door/*` has its own answers for instances on the door socket."""
    if path == b"/health":
        return HEALTH
    if path in MODEL_CALLS:
        return MODEL
    if path == b"/v1/models" or path.startswith(b"/v1/models/"):
        return Match(door=Door.MODEL_LIST, methods=GET, name=path[len(b"/v1/models/") :].decode("ascii"))
    parts = path.split(b"/")
    if len(parts) == 4 and parts[1] == b"agents" and parts[3] in (b"run", b"stream"):
        agent = parts[2].decode("ascii")
        if not names.is_label(agent):
            return None
        return Match(door=Door.RUN, methods=POST, name=agent, stream=parts[3] == b"stream")
    if len(parts) == 4 and parts[1] == b"agents" and parts[3] == b"ws" and names.is_label(agent := parts[2].decode("ascii")):
        return Match(door=Door.SOCKET, methods=GET, name=agent, stream=True)
    if inside and len(parts) == 5 and parts[1:3] == [b"door", b"runs"] and parts[4] == b"usage":
        return Match(door=Door.RUN_USAGE, methods=GET, name=parts[3].decode("ascii"))
    if _under(path, _PUBLIC):
        return PUBLIC
    if _under(path, _SIGNED):
        return SIGNED
    if _under(path, _CONTROL):
        return CONTROL
    return None


def _under(path: bytes, roots: tuple[bytes, ...]) -> bool:
    return any(path == root or path.startswith(root + b"/") for root in roots)
