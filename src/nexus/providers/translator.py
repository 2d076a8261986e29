"""The translator as a program that is started on first use (`local_model.Activator`) and unloaded when idle."""

from dataclasses import dataclass
from pathlib import Path

from nexus.core import errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`python` is the interpreter of the translator's own environment."""

    python: Path
    socket: Path
    log: Path
    model: str = "translator"
    start_timeout_s: float = 60.0
    stop_timeout_s: float = 5.0

    @property
    def command(self) -> list[str]:
        program = Path(__file__).with_name("translator_server.py")
        return [str(self.python), "-P", "-I", str(program), "--socket", str(self.socket)]

    def absent(self) -> errors.NexusError | None:
        if (self.python.parents[1] / ".done").exists():
            return None
        return errors.Unavailable(
            "this host has no translator between dialects",
            code="translator.not_installed",
            cause="its environment was not built",
            next_step="nexus models translator",
        )
