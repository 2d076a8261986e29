"""The database process: make the embedded cluster ready, then become PostgreSQL. Started by the keeper.

Becoming it (exec) rather than starting it keeps the process id, so the keeper watches the server itself.
"""

import os
import sys

from nexus.apps import settings
from nexus.core import errors
from nexus.stores import embedded


def main() -> int:
    """Does not return when all is well."""
    home = settings.read_settings(os.environ).home
    try:
        launch = embedded.prepare(home)
        if launch.user is not None:
            os.setgroups([])
            os.setgid(launch.user.pw_gid)
            os.setuid(launch.user.pw_uid)
        os.umask(0o077)
        os.chdir("/")
        os.execve(launch.argv[0], launch.argv, launch.environment)  # noqa: S606 - becoming it is the point
    except errors.NexusError as error:
        for line in settings.explain(error):
            sys.stderr.write(f"{line}\n")
    except OSError as error:
        sys.stderr.write(f"error: the database could not be started: {error}\n")
    return 70


if __name__ == "__main__":
    sys.exit(main())
