"""Uploaded packages: streamed to a draft on disk, examined without importing anything, stored under their digest."""

import asyncio
import errno
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nexus.core import errors
from nexus.wire import archive, project, project_file

DEFAULT_ENTRYPOINTS = ("agent.py", "main.py", "app.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What a package says about itself."""

    digest: str
    size_bytes: int
    config_text: str
    config: project.ProjectConfig
    entrypoint: str


class PackageFolder:
    """`$NEXUS_HOME/packages`: one `<digest>.tar.gz` a package; drafts begin with a dot and never outlive their upload."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def path(self, digest: str) -> Path:
        return self._folder / f"{digest}.tar.gz"

    def clean(self) -> None:
        """Remove drafts a crash left behind."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for draft in self._folder.glob(".draft-*"):
            draft.unlink(missing_ok=True)

    async def receive(self, chunks: AsyncIterator[bytes]) -> Path:
        """Write an upload to a draft, which the caller keeps or drops.

        `Exhausted` (`storage.full`) or `Invalid` (`body.too_large`, `package.empty`) leave nothing behind.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft, size = self._folder / f".draft-{secrets.token_hex(8)}", 0
        try:
            with _translated(), draft.open("xb") as stream:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > self._max_bytes:
                        raise errors.Invalid(
                            f"the package is larger than {self._max_bytes // 1024**2} MiB",
                            code="body.too_large",
                            next_step="keep data and models out of it with a .nexusignore file",
                        )
                    await asyncio.to_thread(stream.write, chunk)
                stream.flush()
                await asyncio.to_thread(os.fsync, stream.fileno())
            if not size:
                raise errors.Invalid(
                    "the package is empty", code="package.empty", next_step="send the gzipped tar of the project folder"
                )
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return draft

    async def examine(self, draft: Path) -> Examined:
        """Digest, config and entry point; `Invalid` (`package.*`, `config.*`, `entrypoint.missing`) when it cannot be hosted."""
        return await asyncio.to_thread(_examine, draft)

    async def keep(self, draft: Path, digest: str) -> None:
        """The draft becomes the package of this digest, atomically."""

        def move() -> None:
            with _translated():
                os.chmod(draft, 0o600)
                os.replace(draft, self.path(digest))

        await asyncio.to_thread(move)

    def drop(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)


def _examine(draft: Path) -> Examined:
    digest = archive.digest_of(draft)
    content = archive.read_file(draft, "config.yaml")
    if content is None:
        raise errors.Invalid(
            "the package has no config.yaml",
            code="config.missing",
            next_step="write one beside the agent's code: nexus ai agent init shows how",
        )
    try:
        text = content.decode("utf-8")
        config = project_file.parse_project(text, "config.yaml")
    except UnicodeDecodeError as error:
        raise errors.Invalid(
            f"config.yaml is not UTF-8 (byte {error.start})", code="config.invalid", next_step="save it as UTF-8"
        ) from error
    return Examined(
        digest=digest,
        size_bytes=draft.stat().st_size,
        config_text=text,
        config=config,
        entrypoint=_find_entrypoint(config, archive.list_files(draft)),
    )


def _find_entrypoint(config: project.ProjectConfig, files: list[str]) -> str:
    if config.entrypoint:
        return config.entrypoint
    for name in DEFAULT_ENTRYPOINTS:
        if name in files:
            return name.removesuffix(".py")
    raise errors.Invalid(
        "the package does not say where its agent is",
        code="entrypoint.missing",
        cause=f"config.yaml names no entrypoint and there is no {', '.join(DEFAULT_ENTRYPOINTS)}",
        next_step="add `entrypoint: module:attribute` to config.yaml",
    )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise errors.Exhausted(
                "there is no room on disk for this package",
                code="storage.full",
                cause=os.strerror(error.errno),
                next_step="free space under $NEXUS_HOME and upload again; nothing was stored",
            ) from error
        raise errors.Unavailable(
            "the package could not be stored",
            code="storage.failed",
            cause=os.strerror(error.errno) if error.errno else type(error).__name__,
            next_step="check the disk under $NEXUS_HOME: nexus doctor",
        ) from error
