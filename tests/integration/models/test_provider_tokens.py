"""Tokens fetched by real commands and from a token service on a real socket."""

import asyncio
import sys
from urllib.parse import parse_qs

import pytest

from nexus.core import errors
from nexus.kit import clock
from nexus.models import provider_auth, provider_tokens


def command(code, **fields):
    return provider_auth.Auth(command=[sys.executable, "-c", code], **fields)


async def fetch(auth, environ=None, read=lambda reference: "s3cret&more"):
    return await provider_tokens.fetch(auth, read, environ=environ or {}, now=1000.0)


async def test_a_command_prints_the_token_and_sees_nothing_of_the_hosts_secrets():
    environ = {"NEXUS_MASTER_KEY": "k", "OPENAI_API_KEY": "k", "AZURE_CONFIG_DIR": "/x"}
    token = await fetch(command("import os; print('_'.join(sorted(os.environ)))"), environ)
    assert "AZURE_CONFIG_DIR" in token.bearer
    assert not {"NEXUS_MASTER_KEY", "OPENAI_API_KEY"} & set(token.bearer.split("_"))
    assert "NEXUS" not in token.bearer


@pytest.mark.parametrize(
    ("auth", "word"),
    [
        (command("raise SystemExit(3)"), "exit code 3"),
        (provider_auth.Auth(command=["/nowhere/at-all"]), "/nowhere/at-all"),
        (command("print('sk-secret two')"), "no token has"),
        (command("import sys\nwhile True: sys.stdout.write('x' * 65536)"), "too long"),
    ],
)
async def test_a_command_that_fails_says_how_and_shows_nothing(auth, word):
    with pytest.raises(errors.Unavailable) as caught:
        await fetch(auth)
    assert caught.value.code == "provider.token_missing"
    assert word in caught.value.cause
    assert "sk-secret" not in caught.value.cause


async def test_a_command_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(provider_tokens, "_TIMEOUT_S", 0.3)
    with pytest.raises(errors.Unavailable, match="did not end in time"):
        await fetch(command("import time; time.sleep(600)"))


class Service:
    """A token service. `answers` are used up in order; the last one stays."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        self.asked.append(parse_qs((await reader.readexactly(length)).decode()))
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
        await writer.drain()
        writer.close()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        oauth = {"client_id": "me", "client_secret": "env:S", "token_url": f"http://127.0.0.1:{port}/token", "scope": "a b"}
        self.auth = provider_auth.Auth(oauth=oauth)
        return self

    async def __aexit__(self, *problem):
        self.server.close()


async def test_a_token_service_is_asked_as_oauth_says():
    async with Service((200, b'{"access_token": "tok", "expires_in": 600}')) as service:
        token = await fetch(service.auth)
    assert (token.bearer, token.expires_at) == ("tok", 1600.0)
    assert service.asked == [
        {"grant_type": ["client_credentials"], "client_id": ["me"], "client_secret": ["s3cret&more"], "scope": ["a b"]}
    ]


async def test_a_service_that_refuses_is_told_by_its_short_code_alone():
    async with Service((401, b'{"error": "invalid_client", "error_description": "s3cret&more is wrong"}')) as service:
        with pytest.raises(errors.Unavailable) as caught:
            await fetch(service.auth)
    assert caught.value.cause == "401, invalid_client"


async def test_tokens_are_renewed_before_they_end_and_after_failures():
    answers = [(503, b""), *((200, b'{"access_token": "tok%d", "expires_in": 1.2}' % number) for number in range(3))]
    changed = asyncio.Event()
    async with Service(*answers) as service:
        keeper = provider_tokens.ProviderTokens(changed=changed.set, environ={}, clock=clock.SystemClock())
        keeper.want({"azure": (service.auth, lambda reference: "x")})
        assert await keeper.look() == pytest.approx(provider_tokens._RETRY_S, abs=1)
        assert keeper.find("azure") is None
        keeper._held["azure"].due_at = 0.0
        running = asyncio.create_task(keeper.run())
        seen = set()
        async with asyncio.timeout(20):
            while len(seen) < 3:
                await changed.wait()
                changed.clear()
                seen.add(keeper.find("azure").bearer)
        running.cancel()
        keeper.want({})
        assert keeper.find("azure") is None
    assert seen == {"tok0", "tok1", "tok2"}
