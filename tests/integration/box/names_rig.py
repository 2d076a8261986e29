"""A supervisor on a machine that knows names of its own, for agents with a way out. Needs root."""

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import supervisor_rig


class NamesRig(supervisor_rig.SupervisorRig):
    """A supervisor whose machine knows names of its own: `api.test` and `db.test` are the loopback."""

    def command(self) -> list[str]:
        hosts = self.home.root / "hosts"
        hosts.write_text("127.0.0.1 localhost api.test db.test\n")
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, str(hosts), *super().command()]


@contextlib.asynccontextmanager
async def knowing_names(*, plain: bool = True, **environ: str) -> AsyncIterator[supervisor_rig.SupervisorRig]:
    root = Path(tempfile.mkdtemp(prefix="nexus-names-"))
    rig = NamesRig(root, plain=plain)
    rig.environ = {"NEXUS_EGRESS_ALLOW": "127.0.0.1/32", **environ}
    try:
        await rig.up()
        yield rig
    finally:
        await rig.close()
        shutil.rmtree(root, ignore_errors=True)
