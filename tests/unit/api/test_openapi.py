"""The committed OpenAPI document is the one the code gives."""

from pathlib import Path

from nexus.api import openapi

DOCUMENT = Path(__file__).parents[3] / "docs" / "reference" / "openapi.json"


def test_the_committed_document_is_current() -> None:
    assert openapi.render() == DOCUMENT.read_text(), "run: python -m nexus.api.openapi > docs/reference/openapi.json"
