"""The plain reader finds the sentences that answer a question, whatever the document looks like."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[3] / "examples" / "document"
DOCUMENT = (FOLDER / "incident-report.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def passages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("passages_of_plain_reader", FOLDER / "plain-reader" / "passages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("question", "fact"),
    [
        ("Why did the compressor stop?", "worn drive belt"),
        ("How many pallets had to be destroyed?", "31"),
        ("Who replaced the drive belt?", "Ines Marquez"),
        ("What is the estimated loss?", "86,400 euros"),
        ("Who reviews the measures?", "Ruth Okafor"),
    ],
)
def test_the_passage_holds_the_answer(passages: ModuleType, question: str, fact: str) -> None:
    passage = passages.best_passage(DOCUMENT, question)
    assert fact in passage
    assert len(passage) < 400, "a small model reads two sentences, not a page"


def test_sections_have_their_headings(passages: ModuleType) -> None:
    titles = [section.title for section in passages.sections(DOCUMENT)]
    assert titles[:2] == ["Summary", "What happened"]
    assert len(titles) == 8


@pytest.mark.parametrize("document", ["", "   \n\n ", "no sentence here", "One. Two! Three?", "字\n\n句。", "x" * 10_000])
def test_any_document_gives_a_passage_and_no_error(passages: ModuleType, document: str) -> None:
    assert isinstance(passages.best_passage(document, "What?"), str)
    assert isinstance(passages.sections(document), list)
