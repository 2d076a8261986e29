"""Assemble the control API. Called by the composition root, by tests, and to print the OpenAPI document."""

import importlib
import importlib.util

from fastapi import APIRouter, FastAPI

import nexus
from nexus.api import (
    agents,
    bounds,
    checkpoints,
    deployments,
    door,
    door_fast,
    errors,
    host,
    keys,
    logs,
    recordings,
    reference,
    rollouts,
    secrets,
)
from nexus.api.services import Services
from nexus.core import errors as core_errors

# Routers of the rooms for tasks and telemetry, each in a module of its own.
_FURTHER = (
    "nexus.api.tasks",
    "nexus.api.schedules",
    "nexus.api.asks",
    "nexus.api.replays",
    "nexus.api.triggers",
    "nexus.api.runs",
    "nexus.api.sessions",
    "nexus.api.audit",
    "nexus.api.models",
    "nexus.api.metrics",
    "nexus.api.door",
)

_console = APIRouter(include_in_schema=False)


@_console.get("/console")
@_console.get("/console/{rest:path}")
async def console(rest: str = "") -> None:
    raise core_errors.NotFound(
        "this version of the host has no console",
        code="console.absent",
        next_step="use the command line (nexus ai agent list) or the API (/docs)",
    )


def create_app(services: Services | None) -> FastAPI:
    """The app over these rooms; None only to describe it."""
    app = FastAPI(
        title="Nexus Agent Hosting",
        summary="Control API: agents, deployments, tasks, secrets, keys.",
        description="Every error is a problem (RFC 9457, `application/problem+json`) with a stable `code`.",
        version=nexus.__version__,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    errors.install(app)
    for router in (
        agents.router,
        deployments.router,
        rollouts.router,
        secrets.router,
        logs.router,
        keys.router,
        host.router,
        reference.router,
        _console,
    ):
        app.include_router(router)
    for name in _FURTHER:
        if importlib.util.find_spec(name) is not None:
            app.include_router(importlib.import_module(name).router)
    app.add_middleware(door_fast.Door, routes=[*checkpoints.ROUTES, *door.ROUTES, *recordings.ROUTES])
    app.add_middleware(bounds.Bounds)
    return app
