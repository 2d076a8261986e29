"""What agents, environments and tenants may be called: one DNS label, so a name is safe in a URL, a file and a metric."""

import re

from nexus.core import errors

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SESSION = re.compile(r"[A-Za-z0-9._:@-]{1,256}")


def is_label(value: str) -> bool:
    return _LABEL.fullmatch(value) is not None


def is_session_id(value: str) -> bool:
    """Session ids are the client's: 1 to 256 of `A-Za-z0-9._:@-`."""
    return _SESSION.fullmatch(value) is not None


def parse_label(value: str, what: str = "agent name") -> str:
    """The name itself, or `Invalid` (code `name.invalid`) saying what is allowed."""
    if is_label(value):
        return value
    shown = value if len(value) <= 80 else value[:77] + "..."
    raise errors.Invalid(
        f"{shown!r} is not a valid {what}",
        code="name.invalid",
        cause="a name is 1 to 63 of a-z, 0-9 and '-', and begins and ends with a letter or digit",
        next_step=f"choose a {what} such as 'my-agent'",
    )
