"""`/docs` is a page of our own origin: no script, style or picture comes from anywhere else."""

import re

import httpx2
import pytest

from nexus.api import app


@pytest.fixture
def client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app.create_app(None)), base_url="http://127.0.0.1")


async def test_everything_the_page_needs_comes_from_the_host(client: httpx2.AsyncClient) -> None:
    async with client:
        page = await client.get("/docs")
        assert page.status_code == 200
        assert "script-src 'self'" in page.headers["content-security-policy"]
        needed = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert [address for address in needed if not address.startswith(("/docs/", "data:"))] == []
        for address in needed:
            if address.startswith("/docs/"):
                assert (await client.get(address)).status_code == 200, address


@pytest.mark.parametrize("name", ["redoc.standalone.js", "..%2fcore.py", "nothing"])
async def test_no_other_file_is_served(client: httpx2.AsyncClient, name: str) -> None:
    async with client:
        assert (await client.get(f"/docs/{name}")).status_code == 404
