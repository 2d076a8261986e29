"""`/docs`: the API document as a page, from our own origin alone, so that it works offline and runs nobody else's script.

Swagger UI's files come from the package `fastapi_offline`; only its files are used.
"""

import importlib.util
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, Response

from nexus.core import errors

router = APIRouter(include_in_schema=False)

_FILES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
_START = """window.addEventListener("load", () => SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#reference", deepLinking: true, persistAuthorization: false,
}));
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Nexus Agent Hosting: API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
<script src="/docs/swagger-ui-bundle.js" defer></script>
<script src="/docs/start.js" defer></script>
</head>
<body><div id="reference"></div></body>
</html>
"""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


@router.get("/docs")
async def page() -> HTMLResponse:
    return HTMLResponse(_PAGE, headers=_HEADERS)


@router.get("/docs/start.js")
async def start() -> Response:
    return Response(_START, media_type="text/javascript", headers=_HEADERS)


@router.get("/docs/{name}")
async def file(name: str) -> FileResponse:
    """One of Swagger UI's two files; nothing else of that folder."""
    folder = _find_files()
    if name not in _FILES or folder is None:
        raise errors.NotFound(f"there is no page /docs/{name[:80]}", code="route.not_found", next_step="open /docs")
    return FileResponse(folder / name, media_type=_FILES[name], headers={**_HEADERS, "Cache-Control": "public, max-age=86400"})


def _find_files() -> Path | None:
    spec = importlib.util.find_spec("fastapi_offline")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "static"
