"""List prices of the providers this host has, from genai-prices, for the feed. Overrides stand before them.

Read by a short-lived process (`price_export`) at the start and once a day, because prices may begin on a date.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nexus.wire import feed
from nexus.wire import models as wire

_LOG = logging.getLogger(__name__)
_TIMEOUT_S = 60.0


async def load(providers: Collection[str]) -> dict[str, feed.PricesEntry]:
    """By provider as genai-prices names it. Empty, with a word in the log, when they cannot be read."""
    if not providers:
        return {}
    command = [sys.executable, "-m", "nexus.models.price_export", *sorted(providers)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            out, said = await process.communicate()
        if process.returncode == 0:
            found: dict[str, feed.PricesEntry] = json.loads(out)
            return found
        reason = said.decode("utf-8", "replace").strip()[-300:]
    except (TimeoutError, ValueError) as error:
        reason = repr(error)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    _LOG.warning("list prices cannot be read: %s", reason)
    return {}


def read_cache(path: Path) -> dict[str, feed.PricesEntry]:
    """What was read last, so that prices are known from the first moment of a start."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_cache(path: Path, found: Mapping[str, feed.PricesEntry]) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(found, separators=(",", ":")), "utf-8")
    draft.replace(path)


def override(listed: Mapping[str, feed.PricesEntry], own: Mapping[str, Mapping[str, wire.Price]]) -> dict[str, feed.PricesEntry]:
    """The lists with a host's own prices first. A model that ends in `*` is a pattern; what is known of its context stays."""
    found: dict[str, feed.PricesEntry] = {provider: {"models": list(entry["models"])} for provider, entry in listed.items()}
    for provider, by_model in own.items():
        lines = found.setdefault(provider, {"models": []})["models"]
        # The longest pattern first: it is the most particular.
        for model in sorted(by_model, key=len):
            price = by_model[model].model_dump(exclude_none=True)
            lines.insert(0, {"match": _match(model), "context": None, "price": price})
    return found


def _match(model: str) -> dict[str, Any]:
    return {"starts_with": model[:-1]} if model.endswith("*") else {"equals": model}
