"""Finding what a small model should read: it answers well about two sentences and badly about two pages."""

import math
import re
from dataclasses import dataclass

_COMMON = re.compile(
    r"(a|an|and|as|at|be|by|did|do|does|for|from|had|has|have|how|in|is|it|not|of|on|or|that|the|to|was|were|what|when|where|which"
    r"|who|why|with)"
)


@dataclass(frozen=True)
class Section:
    title: str
    text: str


def sections(document: str) -> list[Section]:
    """Paragraphs with the heading above each; a paragraph without one is called by its number."""
    found = []
    for paragraph in re.split(r"\n\s*\n", document.strip()):
        first, _, rest = paragraph.partition("\n")
        is_heading = bool(rest) and len(first) <= 60 and first[-1:] not in ".!?:,;"
        title, body = (first, rest) if is_heading else (f"Part {len(found) + 1}", paragraph)
        if re.search(r"[.!?]", body):
            found.append(Section(title=title.strip(), text=" ".join(body.split())))
    return found


def best_passage(document: str, question: str) -> str:
    """The sentence that shares the rarest words with the question, and the one after it."""
    sentences = [sentence for section in sections(document) for sentence in _sentences(section.text)]
    bags = [_words(sentence) for sentence in sentences]
    if not sentences:
        return document.strip()

    def weight(word: str) -> float:
        return math.log(1 + len(bags) / (1 + sum(word in bag for bag in bags)))

    def score(at: int) -> float:
        following = bags[at + 1] if at + 1 < len(bags) else frozenset()
        return sum(weight(word) * (1.5 if word in bags[at] else 1) for word in _words(question) & (bags[at] | following))

    best = max(range(len(sentences)), key=score)
    return " ".join(sentences[best : best + 2])


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9])(?!\d\.)", text) if len(part) > 3]


def _words(text: str) -> frozenset[str]:
    plain = (word.lower() for word in re.findall(r"\w+", text))
    return frozenset(re.sub(r"(?<=\w{3})(ing|ed|es|s|e)$", "", word) for word in plain if not _COMMON.fullmatch(word))
