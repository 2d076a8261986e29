"""What can be set about the audit trail; the composition root fills it in."""

from dataclasses import dataclass, field
from pathlib import Path

from nexus.audit import redaction


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """Times in seconds. `keep_s`: records; `keep_content_s`: their content. `anchors`: a file outside the database that remembers
    where each chain ended."""

    anchors: Path
    rules: redaction.Rules = field(default_factory=redaction.Rules)
    keep_s: float = 400 * 86400.0
    keep_content_s: float = 30 * 86400.0
    sweep_s: float = 600.0
    sweep_batch: int = 5000
    anchor_s: float = 2.0
