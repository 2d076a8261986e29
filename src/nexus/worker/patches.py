"""Changes to other modules, made once they are imported (or at once, where they are there already). None is imported by us."""

import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

Patch = Callable[[ModuleType], None]
_LOG = logging.getLogger("nexus.worker")


def when_imported(name: str, patch: Patch, *, otherwise: str) -> None:
    """Call `patch(module)` once `name` has been executed. A patch that raises is logged with what it costs (`otherwise`)."""

    def guarded(module: ModuleType) -> None:
        try:
            patch(module)
        except Exception as error:  # noqa: BLE001 - another version of the library must not break the agent
            _LOG.warning("%s: %s", otherwise, error)

    if (module := sys.modules.get(name)) is not None:
        guarded(module)
    _finder().patches.setdefault(name, []).append(guarded)


def _finder() -> "_Finder":
    for finder in sys.meta_path:
        if isinstance(finder, _Finder):
            return finder
    made = _Finder()
    sys.meta_path.insert(0, made)
    return made


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the other finders find, and patches the module once it has been executed."""

    def __init__(self) -> None:
        self.patches: dict[str, list[Patch]] = {}
        self._busy: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.patches or fullname in self._busy:
            return None
        self._busy.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._busy.discard(fullname)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            _execute_then_patch(spec.loader, self.patches[fullname])
        return spec


def _execute_then_patch(loader: Any, patches: list[Patch]) -> None:
    original = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        original(module)
        for patch in patches:
            patch(module)

    loader.exec_module = exec_module
