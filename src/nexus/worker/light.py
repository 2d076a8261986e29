"""Command lines that HTTP libraries import along with themselves, where click, rich and pygments happen to be there.

They are put off until somebody calls them, which no agent does: that saves 10 ms and 3 MiB at every start.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

_COMMAND_LINES = ("httpx._main", "httpx2._main")


def put_off() -> None:
    """Call it before the author's code is imported. Modules that are there already stay."""
    for name in _COMMAND_LINES:
        if name.partition(".")[0] in sys.modules or name in sys.modules:
            continue
        standing_in: Any = ModuleType(name)
        standing_in.main = _Main(name)
        sys.modules[name] = standing_in


class _Main:
    """The library's `main`, imported when it is called."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if isinstance(getattr(sys.modules.get(self._name), "main", None), _Main):
            del sys.modules[self._name]
        return importlib.import_module(self._name).main(*arguments, **options)
