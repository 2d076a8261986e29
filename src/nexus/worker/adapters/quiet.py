"""Frameworks that report home, or fetch lists when they are imported, are told not to, unless the author said otherwise."""

from collections.abc import MutableMapping

_DEFAULTS = {
    "AGNO_TELEMETRY": "false",
    "ANONYMIZED_TELEMETRY": "False",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


def quieten(environ: MutableMapping[str, str]) -> None:
    """Call it before the author's code is imported."""
    for name, value in _DEFAULTS.items():
        environ.setdefault(name, value)
