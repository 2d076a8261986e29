"""Frameworks that report home, fetch lists or fill the log when they are imported are told not to, unless the author says so."""

from collections.abc import MutableMapping
from types import ModuleType
from typing import Any

from nexus.worker import patches

_DEFAULTS = {
    "AGNO_TELEMETRY": "false",
    "ANONYMIZED_TELEMETRY": "False",
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL": "true",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
_FOUNDRY_TRACES = "azure.ai.agentserver.core._tracing"


def quieten(environ: MutableMapping[str, str]) -> None:
    """Call it before the author's code is imported."""
    for name, value in _DEFAULTS.items():
        environ.setdefault(name, value)

    def keep_to_the_log(module: ModuleType) -> None:
        """Foundry's SDK prints every log line and span on the console where no other place is named for them."""
        original: Any = module.configure_observability

        def configure(*arguments: Any, connection_string: str | None = None, **options: Any) -> None:
            if connection_string or any(name.startswith("OTEL_EXPORTER_OTLP") for name in environ):
                original(*arguments, connection_string=connection_string, **options)

        module.configure_observability = configure  # type: ignore[attr-defined]

    patches.when_imported(_FOUNDRY_TRACES, keep_to_the_log, otherwise="the app's own telemetry goes to its log")
