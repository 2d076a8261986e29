"""What a client library puts off until its first call, though every agent that has it will need it.

Imported before the first run, once for all sessions that are forked from this process: OpenAI's SDK 2 takes half a second for it.
"""

import importlib
import logging
import sys

_LOG = logging.getLogger("nexus.worker")
_AT_FIRST_CALL = {
    "openai": ("openai.resources.chat",),
    "litellm": ("litellm.llms.openai.openai", "litellm.responses.mcp.chat_completions_handler"),
    "google.adk": ("google.adk.workflow._workflow",),
}


def fetch() -> None:
    """Call it when the author's code has been imported; libraries that are not there stay away."""
    for name in [name for library, names in _AT_FIRST_CALL.items() if library in sys.modules for name in names]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            _LOG.debug("%s is not imported ahead: %s", name, error)
