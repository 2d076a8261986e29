"""Nexus Agent Hosting: run AI agents in production.

`from nexus import Client, AsyncClient` is the typed client; `from nexus.ai.agents import Agent` is the
author's side. Both load on first use, so that importing a part costs only that part.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__"]

if TYPE_CHECKING:
    from nexus.client import AsyncClient, Client


def __getattr__(name: str) -> object:
    if name in ("Client", "AsyncClient"):
        from nexus import client

        return getattr(client, name)
    raise AttributeError(f"module 'nexus' has no attribute {name!r}")
