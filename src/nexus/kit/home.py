"""Where the host keeps things on disk: `$NEXUS_HOME`, and a short run-time directory for unix sockets.

A unix socket's path may have 107 bytes (unix(7)), so when the home is deep the sockets move to a private directory under /tmp.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

_LONGEST_SOCKET_NAME = len("/i/") + 30 + len(".sock")


@dataclass(frozen=True, slots=True)
class Home:
    """Every path of one host. `root` is absolute; nothing is created by asking for a path."""

    root: Path

    @property
    def run(self) -> Path:
        """Directory of the sockets (0700)."""
        inside = self.root / "run"
        if len(os.fsencode(inside)) + _LONGEST_SOCKET_NAME <= 107:
            return inside
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return Path("/tmp") / f"nexus-{os.getuid()}-{digest}"  # noqa: S108 - private by name and 0700

    @property
    def control_socket(self) -> Path:
        return self.run / "control.sock"

    @property
    def feed_socket(self) -> Path:
        return self.run / "feed.sock"

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "supervisor.sock"

    @property
    def doors(self) -> Path:
        """What boxes see of the run-time directory: the gateways' doors and nothing else."""
        return self.run / "doors"

    def door_socket(self, gateway: int) -> Path:
        """Where gateway process number `gateway` serves the platform doors to instances."""
        return self.doors / f"door-{gateway}.sock"

    def sibling_socket(self, gateway: int) -> Path:
        """Where gateway process number `gateway` takes requests from the other gateways."""
        return self.run / f"sibling-{gateway}.sock"

    def dispatcher_socket(self, dispatcher: int) -> Path:
        """Where dispatcher process number `dispatcher` tells how it is."""
        return self.run / f"dispatcher-{dispatcher}.sock"

    def model_socket(self, model: str) -> Path:
        """Where a local model answers; listening there starts it on first use."""
        return self.run / f"model-{model}.sock"

    def instance_socket(self, instance_id: str) -> Path:
        return self.run / "i" / f"{instance_id}.sock"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def packages(self) -> Path:
        return self.root / "packages"

    @property
    def environments(self) -> Path:
        return self.root / "environments"

    @property
    def worker_copies(self) -> Path:
        return self.root / "worker"

    @property
    def instances(self) -> Path:
        return self.root / "instances"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def admin_key(self) -> Path:
        return self.root / "admin.key"

    @property
    def service_token(self) -> Path:
        """What this host's dispatcher processes show to its gateways (0600); another one at every start of the host."""
        return self.root / "service.token"

    @property
    def master_key(self) -> Path:
        return self.root / "master.key"

    @property
    def lock(self) -> Path:
        return self.root / "host.lock"

    @property
    def host_record(self) -> Path:
        """JSON about the running host: `{"origin", "pid", "started_at", "processes"}`."""
        return self.root / "host.json"

    @property
    def spend(self) -> Path:
        """The gateways' ledger of what model calls spent and reserved."""
        return self.root / "spend"

    @property
    def route_cache(self) -> Path:
        """The last routes a gateway saw, so that it can start while control is down."""
        return self.root / "routes.json"


def find_home(value: str | None) -> Home:
    """The home for a `$NEXUS_HOME` value; `~/.nexus` when absent or empty."""
    root = Path(value).expanduser() if value else Path.home() / ".nexus"
    return Home(root.absolute())
