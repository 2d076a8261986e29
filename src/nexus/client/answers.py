"""What the client hands back: plain values that print as the documents show them, and know more when asked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_STATUS_FIELDS = ("output", "message", "error")


class Answer(dict[str, Any]):
    """A JSON object whose members are attributes too. `view` is all the host said; the dict may show a part of it.

    `answer["x"]` and `answer.x` find members that are only in the view.
    """

    def __init__(self, view: Mapping[str, Any], shown: Iterable[str] | None = None) -> None:
        super().__init__(view if shown is None else {name: view.get(name) for name in shown})
        self.__dict__["view"] = dict(view)

    def __missing__(self, name: str) -> Any:
        return self.__dict__["view"][name]

    def __getattr__(self, name: str) -> Any:
        view = self.__dict__.get("view", {})
        if name in view:
            return _wrap(view[name])
        raise AttributeError(f"the answer has no {name!r}; it has {', '.join(view)}")


def _wrap(value: Any) -> Any:
    if isinstance(value, dict):
        return Answer(value)
    if isinstance(value, list):
        return [_wrap(entry) for entry in value]
    return value


def submitted(view: Mapping[str, Any]) -> Answer:
    """A task just accepted, as document 1 prints it: `{"task_id": "task_…", "status": "pending"}`."""
    return Answer(view, ("task_id", "status"))


def task_status(view: Mapping[str, Any]) -> Answer:
    """A task on its way: `{"status": "running", "progress": 45}`, with output, message and error once there are any."""
    view = dict(view)
    progress = view.get("progress")
    if isinstance(progress, float) and progress.is_integer():
        view["progress"] = int(progress)
    return Answer(view, ("status", "progress", *(name for name in _STATUS_FIELDS if view.get(name) is not None)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A finished run. `metadata` holds `tokens_used`, `duration_ms` and what else the agent's worker measured."""

    output: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    session_id: str | None = None
    version: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"output": self.output, "metadata": dict(self.metadata)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One event of a run (names in `nexus.wire.runs`). The last one has output and metadata.

    `text` is what to print: empty for all but `message.delta`, and the last one's whole output when the agent did not stream.
    """

    event: str
    data: Mapping[str, Any]
    id: str | None = None
    text: str = ""

    @property
    def output(self) -> Any:
        return self.data.get("output")

    @property
    def metadata(self) -> Mapping[str, Any]:
        metadata = self.data.get("metadata")
        return metadata if isinstance(metadata, Mapping) else {}
