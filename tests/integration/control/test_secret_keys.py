"""Sealing: what is stored opens nowhere else, and the master key turns without losing anything, crash included."""

import os
from pathlib import Path

import psycopg
import pytest

from nexus.core import errors
from nexus.kit import clock
from nexus.secrets import envelope, master_key, service
from nexus.stores.postgres import access, engine
from tests.integration.control.conftest import Control


def key() -> envelope.MasterKey:
    return envelope.MasterKey(os.urandom(32))


def test_a_sealed_value_opens_in_its_place_with_its_key_only() -> None:
    master, other = key(), key()
    sealed = envelope.seal(b"value", master=master, place="a/b/C")
    assert envelope.unseal(sealed, ring={master.id: master}, place="a/b/C") == b"value"
    with pytest.raises(errors.Internal) as moved:
        envelope.unseal(sealed, ring={master.id: master}, place="other/b/C")
    assert moved.value.code == "secret.damaged"
    with pytest.raises(errors.Unavailable) as absent:
        envelope.unseal(sealed, ring={other.id: other}, place="a/b/C")
    assert absent.value.code == "master_key.missing"
    turned = envelope.rewrap(sealed, ring={master.id: master}, master=other)
    assert envelope.unseal(turned, ring={other.id: other}, place="a/b/C") == b"value"
    assert b"value" not in sealed.sealed + sealed.wrapped_key
    assert "value" not in repr(sealed)


@pytest.mark.parametrize("text", ["", "short", "zz" * 32, "A" * 44 + "!"])
def test_master_keys_that_cannot_be(text: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        envelope.parse_master_key(text, where="NEXUS_MASTER_KEY")
    assert caught.value.code == "master_key.invalid"
    assert not text or text not in str(caught.value)


async def test_nothing_readable_is_stored_and_rotation_keeps_it_all(control: Control, postgres_url: str) -> None:
    await control.api.put("/v1/agents/echo/secrets/A", json={"value": "sk-readable"})
    before = control.home.master_key.read_bytes()
    with psycopg.connect(postgres_url) as connection:
        (row,) = connection.execute("select * from secrets").fetchall()
    assert "sk-readable" not in str(row)
    answer = await control.api.post("/v1/host/rotate-key")
    assert answer.json()["rewrapped"] >= 2
    assert control.home.master_key.read_bytes() != before
    assert not master_key.pending_file(control.home.master_key).exists()
    assert await control.secrets.values("default", "echo") == {"A": "sk-readable"}
    again = master_key.load(text=None, file=None, home_file=control.home.master_key)
    async with engine.open_engine(postgres_url) as database:
        fresh = service.SecretService(store=access.PostgresSecretStore(database), ring=again, clock=clock.SystemClock())
        await fresh.start()
        assert await fresh.values("default", "echo") == {"A": "sk-readable"}


async def test_a_rotation_cut_off_half_way_is_finished_at_the_next_start(control: Control, postgres_url: str) -> None:
    await control.api.put("/v1/agents/echo/secrets/A", json={"value": "one"})
    home_file: Path = control.home.master_key
    master_key.create(master_key.pending_file(home_file), key())
    ring = master_key.load(text=None, file=None, home_file=home_file)
    async with engine.open_engine(postgres_url) as database:
        fresh = service.SecretService(store=access.PostgresSecretStore(database), ring=ring, clock=clock.SystemClock())
        await fresh.start()
        assert await fresh.values("default", "echo") == {"A": "one"}
    assert not master_key.pending_file(home_file).exists()
    only = master_key.load(text=None, file=None, home_file=home_file)
    assert list(only.keys) == [ring.current.id]


async def test_an_operators_key_is_not_rotated_by_the_host(postgres_url: str, tmp_path: Path) -> None:
    ring = master_key.load(text=(b"k" * 32).hex(), file=None, home_file=tmp_path / "master.key")
    async with engine.open_engine(postgres_url) as database:
        held = service.SecretService(store=access.PostgresSecretStore(database), ring=ring, clock=clock.SystemClock())
        await held.start()
        with pytest.raises(errors.Conflict) as caught:
            await held.rotate_master_key()
    assert caught.value.code == "master_key.external"
    assert not (tmp_path / "master.key").exists()


async def test_a_secret_is_read_back_by_no_question_and_no_error(control: Control) -> None:
    value = "canary-that-nobody-reads-back"
    put = await control.api.put("/v1/agents/echo/secrets/API_KEY", json={"value": value})
    deployed = await control.deploy("echo", "hosting: {secrets: [API_KEY]}\n")
    await control.settle()
    paths = [f"/v1/agents/echo{rest}" for rest in ("", "/secrets", "/history", "/versions", "/secrets/API_KEY")]
    paths += ["/v1/agents", f"/v1/deployments/{deployed['id']}", "/v1/status", "/v1/keys", "/v1/audit"]
    told = [put, *[await control.api.get(path) for path in paths]]
    for name in ("../API_KEY", "x" * 300, "API_KEY"):
        told.append(await control.api.put(f"/v1/agents/echo/secrets/{name}", json={"value": value, "other": value}))
        told.append(await control.api.post(f"/v1/agents/echo/secrets/{name}", json={"value": value}))
    assert len([one for one in told if one.status_code == 200]) > 5
    assert [one.request.url.path for one in told if value in one.text] == []
