"""What of the audit trail can be set by the environment, and what is refused by name."""

from pathlib import Path

import pytest

from nexus.apps import control_audit
from nexus.core import errors
from nexus.kit.home import Home

HOME = Home(Path("/somewhere"))


def test_without_settings_records_last_longer_than_their_text_and_no_text_is_kept() -> None:
    found = control_audit.read_settings({}, HOME)
    assert (found.keep_s, found.keep_content_s) == (400 * 86400, 30 * 86400)
    assert found.anchors == Path("/somewhere/audit/anchors")
    assert control_audit.read_content_mode({}) == "off"


def test_what_is_set_holds() -> None:
    environ = {"NEXUS_AUDIT_DAYS": "7.5", "NEXUS_AUDIT_CONTENT_DAYS": "1", "NEXUS_AUDIT_REDACT": "PROJ-\\d+\n\n  secret \n"}
    found = control_audit.read_settings(environ, HOME)
    assert (found.keep_s, found.keep_content_s) == (7.5 * 86400, 86400)
    assert found.rules.redact("PROJ-1 is secret") == "[redacted] is [redacted]"
    assert control_audit.read_content_mode({"NEXUS_AUDIT_CONTENT": " Never "}) == "never"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NEXUS_AUDIT_DAYS", "0"), ("NEXUS_AUDIT_DAYS", "for ever"), ("NEXUS_AUDIT_CONTENT_DAYS", "-1"),
        ("NEXUS_AUDIT_DAYS", "nan"), ("NEXUS_AUDIT_DAYS", "inf"), ("NEXUS_AUDIT_REDACT", "("),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(errors.Invalid, match=name) as caught:
        control_audit.read_settings({name: value}, HOME)
    assert caught.value.code == "setting.invalid"


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(errors.Invalid, match="NEXUS_AUDIT_CONTENT"):
        control_audit.read_content_mode({"NEXUS_AUDIT_CONTENT": "sometimes"})
