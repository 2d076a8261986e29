"""An instance's box as an OCI bundle, for gVisor's `runsc`: a file tree and `config.json`. Pure but for `write`.

It says what `box_root` and `box_entry` do in the words of the OCI runtime specification, version 1.0.2. The worker's variables
are not in it, for a bundle lies on disk: they come over standard input (`oci_start`).
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nexus.drivers.process import box_root, sandbox

_VERSION = "1.0.2"
_BOUND = ["rbind", "nosuid", "nodev"]
_MASKED = [f"/proc/{name}" for name in box_root.HIDDEN]
_READ_ONLY = ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"]
_NAMESPACES = ("pid", "mount", "ipc", "uts", "cgroup")
_SHOWN_OF_SYS = "/sys/devices/system/cpu"


def render(
    wish: sandbox.Wish,
    *,
    instance_id: str,
    owner: int,
    command: Sequence[str],
    limits: Mapping[str, tuple[int, int]],
    root: Path,
) -> dict[str, Any]:
    """`config.json`. `owner` is the user on the host and, by the same number, inside. `command`: what starts `oci_start`."""
    namespaces = [{"type": kind} for kind in _NAMESPACES]
    namespaces += [{"type": "network"}] if wish.network != "host" else []
    return {
        "ociVersion": _VERSION,
        "hostname": f"agent-{instance_id[-6:]}",
        "root": {"path": str(root), "readonly": wish.read_only_root},
        "process": {
            "terminal": False,
            "user": {"uid": owner, "gid": owner},
            "args": list(command),
            "env": ["PATH=/usr/bin:/bin", "LANG=C.UTF-8"],
            "cwd": str(wish.folder),
            "noNewPrivileges": True,
            "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
            "rlimits": [{"type": name, "soft": soft, "hard": hard} for name, (soft, hard) in limits.items()],
        },
        "mounts": render_mounts(wish, owner=owner),
        "linux": {"namespaces": namespaces, "maskedPaths": _MASKED, "readonlyPaths": _READ_ONLY},
    }


def render_mounts(wish: sandbox.Wish, *, owner: int) -> list[dict[str, Any]]:
    temporary = f"size={sandbox.temporary_bytes(wish.memory_bytes)}"
    closed = ["nosuid", "nodev", "noexec"]
    mounts = [
        _mount("/proc", "proc", "proc", closed),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "noexec", "mode=755", "size=64k"]),
        _mount("/dev/shm", "tmpfs", "tmpfs", ["nosuid", "nodev", "mode=1777", temporary]),  # noqa: S108 - the box's own
        _mount("/tmp", "tmpfs", "tmpfs", ["nosuid", "nodev", "mode=1777", temporary]),  # noqa: S108
    ]
    reading = [path for path in (*box_root.SYSTEM, *box_root.ETC_TREES, _SHOWN_OF_SYS) if _is_tree(path)]
    reading += sandbox.outermost([str(path) for path in wish.read])
    mounts += [_mount(path, "bind", path, [*_BOUND, "ro"]) for path in reading]
    mounts += [_mount(path, "bind", path, _BOUND) for path in [*sandbox.bound(wish), str(wish.output)]]
    if wish.home_bytes is not None:
        own = ["nosuid", "nodev", "mode=0700", f"uid={owner}", f"gid={owner}", f"size={wish.home_bytes}"]
        mounts.append(_mount(str(wish.home), "tmpfs", "tmpfs", own))
    return mounts


def write(bundle: Path, config: Mapping[str, Any], wish: sandbox.Wish, *, owner: int) -> None:
    """The bundle anew: the tree with what is copied and linked into it, and the configuration. Raises OSError."""
    shutil.rmtree(bundle, ignore_errors=True)
    root = bundle / "rootfs"
    root.mkdir(parents=True)
    root.chmod(0o755)
    for path in box_root.SYSTEM:
        if os.path.islink(path):
            os.symlink(os.readlink(path), f"{root}{path}")
    files = {path: _read(path) for path in box_root.ETC_FILES}
    if wish.network == "host":
        files |= {path: _read(path) for path in ("/etc/resolv.conf", "/etc/hosts")}
    else:
        files["/etc/hosts"] = box_root.render_hosts(wish.pins)
    files["/etc/passwd"] = f"root:x:0:0:root:/:/bin/sh\nagent:x:{owner}:{owner}:agent:{wish.home}:/bin/sh\n".encode()
    files["/etc/group"] = f"root:x:0:\nagent:x:{owner}:\n".encode()
    for path, content in files.items():
        if content is not None:
            _put(Path(f"{root}{path}"), content)
    for path, target in wish.links:
        place = Path(f"{root}{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_symlink():
            place.symlink_to(target)
    for mount in config["mounts"]:
        _make_place(Path(f"{root}{mount['destination']}"), mount)
    for directory, _, _ in os.walk(root):
        os.chmod(directory, 0o755)  # noqa: S103 - the agent is another user, and this tree is all it sees
    (bundle / "config.json").write_text(json.dumps(config))


def _mount(destination: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _is_tree(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _make_place(place: Path, mount: Mapping[str, Any]) -> None:
    """Where the mount goes, since the tree is read-only by the time of the mount."""
    if mount["type"] != "bind" or os.path.isdir(mount["source"]):
        place.mkdir(parents=True, exist_ok=True)
    elif not place.exists():
        _put(place, b"")


def _read(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError:
        return None


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o644)
