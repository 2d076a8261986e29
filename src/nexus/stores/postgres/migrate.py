"""Bring a database to the schema this code expects. Alembic runs in a process of its own, and only when there is something to
do: `python -m nexus.stores.postgres.migrate`, with the database's URL on standard input.

Concurrent starts are safe: the scripts run under an advisory lock, and who waited for it finds nothing left to do.
"""

import asyncio
import re
import sys
from pathlib import Path

import psycopg

from nexus.core import errors

_SCRIPTS = Path(__file__).parent / "migrations"
_REVISION = re.compile(r'^revision(?:: str)? = "([^"]+)"', re.MULTILINE)
_DOWN = re.compile(r'^down_revision(?:: [^=]+)? = "([^"]+)"', re.MULTILINE)
_LOOK_S = 0.05
_LOCK = 0x6E65787573  # "nexus"
_RAN, _WAS_CURRENT = 0, 3


def known_revisions() -> tuple[str, ...]:
    """Every revision in code, oldest first; the last one is the head."""
    after: dict[str | None, str] = {}
    for path in (_SCRIPTS / "versions").glob("v*.py"):
        text = path.read_text()
        if found := _REVISION.search(text):
            down = _DOWN.search(text)
            after[down[1] if down else None] = found[1]
    chain: list[str] = []
    while (following := after.get(chain[-1] if chain else None)) is not None:
        chain.append(following)
    if len(chain) != len(after):
        raise errors.Internal("the migration scripts do not form one chain", code="database.migrations_broken")
    return tuple(chain)


async def upgrade(url: str) -> bool:
    """True when scripts ran, False when the database was current.

    Raises `Conflict` (code `database.newer`) when the database was written by a newer version of the host.
    """
    known = known_revisions()
    current = await _current(url)
    if current == known[-1]:
        return False
    if current is not None and current not in known:
        raise _newer(current, known)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", __name__,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, told = await child.communicate(url.encode())
    finally:
        if child.returncode is None:
            child.kill()
    if child.returncode not in (_RAN, _WAS_CURRENT):
        raise errors.Internal(
            "the database could not be brought to the schema of this version",
            code="database.migration_failed",
            cause=told.decode(errors="replace").strip().rpartition("\n")[2],
            next_step="see the log of control; nothing was changed, as all scripts are one transaction",
        )
    return child.returncode == _RAN


async def wait_until_current(url: str, *, timeout_s: float) -> None:
    """Return once somebody else has brought the database to this code's schema. Raises as `upgrade` does, and `Unavailable`
    (`database.not_migrated`) when nobody has in time."""
    known = known_revisions()
    try:
        async with asyncio.timeout(timeout_s):
            while (current := await _current(url)) != known[-1]:
                if current is not None and current not in known:
                    raise _newer(current, known)
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise errors.Unavailable(
            "nobody has brought the database to the schema of this version",
            code="database.not_migrated",
            cause=f"control does that at its start; the schema wanted is {known[-1]!r}",
            next_step="see why control does not start: nexus status, and its log",
        ) from None


def _newer(current: str, known: tuple[str, ...]) -> errors.Conflict:
    return errors.Conflict(
        f"the database is at schema {current!r}, which this version does not know",
        code="database.newer",
        cause=f"the newest schema known here is {known[-1]!r}",
        next_step="start the version of nexus-agent-hosting that wrote it, or a newer one",
    )


async def _current(url: str) -> str | None:
    async with await psycopg.AsyncConnection.connect(url, connect_timeout=10) as connection:
        table = await (await connection.execute("select to_regclass('alembic_version')")).fetchone()
        if table is None or table[0] is None:
            return None
        row = await (await connection.execute("select version_num from alembic_version")).fetchone()
        return str(row[0]) if row else None


def _run_scripts(url: str, head: str) -> bool:
    import sqlalchemy as sa
    from alembic import command
    from alembic.config import Config

    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url, connect_timeout=10), poolclass=sa.NullPool
    )
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    with engine.begin() as connection:
        connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        if sa.inspect(connection).has_table("alembic_version"):
            row = connection.execute(sa.text("select version_num from alembic_version")).first()
            if row is not None and row[0] == head:
                return False
        config.attributes["connection"] = connection
        command.upgrade(config, head)
    return True


if __name__ == "__main__":
    sys.exit(_RAN if _run_scripts(sys.stdin.read(), known_revisions()[-1]) else _WAS_CURRENT)
