"""What is taken out of a call's content before it is stored: credentials, addresses, card numbers, and what the operator names.

Patterns are linear in the text: each begins at a fixed mark or a word's edge and repeats one class of letters at a time.
"""

import re
from collections.abc import Callable, Sequence

_SECRETS = (
    ("k-", r"(?<![\w-])(?:sk|pk|rk)-[A-Za-z0-9_-]{16,200}\b"),
    ("sk_", r"\bsk_(?:live|test)_[A-Za-z0-9]{16,200}\b"),
    ("nx", r"\bnx[kis]_[A-Za-z0-9_-]{16,200}"),
    ("AKIA", r"\bAKIA[A-Z0-9]{16}\b"),
    ("ASIA", r"\bASIA[A-Z0-9]{16}\b"),
    ("gh", r"\bgh[pousr]_[A-Za-z0-9]{20,255}\b"),
    ("github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{20,255}\b"),
    ("xox", r"(?<![\w-])xox[abposr]-[A-Za-z0-9-]{10,200}\b"),
    ("AIza", r"\bAIza[A-Za-z0-9_-]{35}\b"),
    ("eyJ", r"(?<![\w-])eyJ[A-Za-z0-9_-]{8,2000}\.[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,1000}"),
    ("earer ", r"\b[Bb]earer [A-Za-z0-9._~+/=-]{16,4000}"),
    ("PRIVATE KEY", r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[A-Za-z0-9+/=\\nr\s]{16,20000}"),
)
_EMAIL = r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}\b"
_CARD = r"(?<!\d)(?:\d[ -]?){12,18}\d(?!\d)"
Replacement = str | Callable[[re.Match[str]], str]


class Rules:
    """`extra` are the operator's own patterns, which become `[redacted]`. Raises ValueError naming one that is no pattern.

    A pattern is looked for only where its mark is, which a search for plain text tells at once.
    """

    def __init__(self, extra: Sequence[str] = ()) -> None:
        self._rules: list[tuple[str, re.Pattern[str], Replacement]] = [
            *((mark, re.compile(pattern), "[secret]") for mark, pattern in _SECRETS),
            ("@", re.compile(_EMAIL), "[email]"),
            ("", re.compile(_CARD), _card),
        ]
        for pattern in extra:
            try:
                self._rules.append(("", re.compile(pattern), "[redacted]"))
            except (re.error, RecursionError) as error:
                raise ValueError(f"{pattern[:60]!r} is not a regular expression: {error}") from None

    def redact(self, text: str) -> str:
        for mark, pattern, replacement in self._rules:
            if mark in text:
                text = pattern.sub(replacement, text)
        return text


def _card(found: re.Match[str]) -> str:
    """A number that has the check digit of a card (Luhn); others stay."""
    digits = [int(letter) for letter in found[0] if letter.isdigit()]
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits))]
    return "[card]" if sum(doubled) % 10 == 0 else found[0]
