"""Programs that start a server when they are imported (`app.run()` at the end of the file): while an entry point is imported,
servers are not started, so that the app can be served in its box. What follows the call is executed."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from nexus.worker import patches

_LOG = logging.getLogger("nexus.worker")
_importing = False


@contextlib.contextmanager
def unserved() -> Iterator[None]:
    """Import the entry point inside."""
    global _importing
    _importing = True
    patches.when_imported("hypercorn.asyncio", _patch_hypercorn, otherwise="an app that starts itself may not be served")
    uvicorn: Any = sys.modules.get("uvicorn")
    original = getattr(uvicorn, "run", None)
    if original is not None:
        uvicorn.run = _not_now
    try:
        yield
    finally:
        _importing = False
        if original is not None:
            uvicorn.run = original


def _not_now(*_: object, **__: object) -> None:
    _LOG.info("the entry point starts a server when it is imported: the host serves its app instead")


def _patch_hypercorn(module: ModuleType) -> None:
    original: Any = module.serve

    async def serve(*arguments: Any, **options: Any) -> Any:
        return _not_now() if _importing else await original(*arguments, **options)

    module.serve = serve  # type: ignore[attr-defined]
