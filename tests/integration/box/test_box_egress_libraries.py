"""Ordinary libraries in a box whose only way out is the broker, with no code for it: each reaches its named host."""

import asyncio
import contextlib
import functools
import http.server
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import names_rig
import pytest

from nexus.core.phases import InstancePhase
from nexus.ports import logs
from nexus.testing.driver_contract import is_in, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="names of its own for a supervisor need root"),
]
AGENT = """
import asyncio, os, subprocess, urllib.request

def with_httpx(url):
    import httpx
    return httpx.get(url, timeout=10).text

def with_async_httpx(url):
    import httpx
    async def get():
        async with httpx.AsyncClient(timeout=10) as client:
            return (await client.get(url)).text
    return asyncio.run(get())

def with_requests(url):
    import requests
    return requests.get(url, timeout=10).text

def with_aiohttp(url, trust_env):
    import aiohttp
    async def get():
        async with aiohttp.ClientSession(trust_env=trust_env) as session, session.get(url) as answer:
            return await answer.text()
    return asyncio.run(get())

def with_urllib(url):
    return urllib.request.urlopen(url, timeout=10).read().decode()

def with_psycopg(host, port):
    import psycopg
    with psycopg.connect(f"host={host} port={port} user=nexus dbname=postgres sslmode=disable connect_timeout=10") as link:
        return link.execute("select 'from ' || current_database()").fetchone()[0]

def with_git(url):
    at = os.environ["HOME"] + "/cloned"
    done = subprocess.run(["git", "clone", "-q", url, at], capture_output=True, text=True)
    return open(at + "/said").read() if done.returncode == 0 else done.stderr

def run(input):
    try:
        return globals()[input[0]](*input[1:])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""
REQUIREMENTS = "httpx\nrequests\naiohttp\npsycopg[binary]\n"


@contextlib.contextmanager
def a_web(folder: Path) -> Iterator[int]:
    """A file `said` and a repository `repo.git` with the same file, over HTTP."""
    (folder / "said").write_text("from the web")
    work = folder / "work"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.test", "-c", "init.defaultBranch=main", "-C", str(work)]
    work.mkdir()
    (work / "said").write_text("from git")
    for command in (["init", "-q"], ["add", "said"], ["commit", "-qm", "say"], ["clone", "-q", "--bare", ".", "../repo.git"]):
        subprocess.run([*git, *command], check=True)
    subprocess.run(["git", "-C", str(folder / "repo.git"), "update-server-info"], check=True)
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        return


@contextlib.asynccontextmanager
async def by_tcp(url: str) -> AsyncIterator[int]:
    """The tests' PostgreSQL, which listens on a unix socket, on a port."""
    folder = url.partition("host=")[2].partition("&")[0]

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")
        await asyncio.gather(pump(reader, outer), pump(inner, writer), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_ordinary_libraries_go_through_the_broker(tmp_path: Path, postgres_server: str) -> None:
    cache = {"UV_CACHE_DIR": os.environ["UV_CACHE_DIR"]} if os.environ.get("UV_CACHE_DIR") else {}
    with a_web(tmp_path) as port:
        async with by_tcp(postgres_server) as database, names_rig.knowing_names(**cache) as rig:
            spec = rig.spec_of(
                {"agent.py": AGENT, "requirements.txt": REQUIREMENTS},
                options={"network": "egress", "egress": [f"api.test:{port}", f"db.test:{database}"]},
            )
            await rig.driver.start(spec)
            async with asyncio.timeout(300):
                while (await rig.status(spec.id)).phase in (InstancePhase.PENDING, InstancePhase.BUILDING):
                    await asyncio.sleep(0.1)
            status = await until(rig, spec.id, is_in(InstancePhase.READY, InstancePhase.FAILED))
            assert status.phase is InstancePhase.READY, dict(status.problem or {})
            url = f"http://api.test:{port}/said"
            for call in (
                ["with_httpx", url],
                ["with_async_httpx", url],
                ["with_requests", url],
                ["with_aiohttp", url, True],
                ["with_aiohttp", url, False],
                ["with_urllib", url],
            ):
                assert await rig.run(spec.id, call) == "from the web", call
            assert await rig.run(spec.id, ["with_git", f"http://api.test:{port}/repo.git"]) == "from git"
            assert await rig.run(spec.id, ["with_psycopg", "db.test", database]) == "from postgres"
            # what is not named is refused to each of them
            for call in (
                ["with_httpx", "http://db.test/"],
                ["with_requests", "http://db.test/"],
                ["with_urllib", "http://db.test/"],
            ):
                said = await rig.run(spec.id, call)
                assert "403" in said or "hosting.egress" in said, call
            assert "Error" in await rig.run(spec.id, ["with_psycopg", "api.test", database])
            lines = [line["message"] async for line in rig.driver.logs(logs.LogQuery(tenant="acme", agent=spec.agent))]
            through = [line for line in lines if line.startswith("egress ") and "bytes out" in line]
            assert any(f"SOCKS db.test:{database}" in line for line in through)
            assert any(f"GET api.test:{port}" in line for line in through)
