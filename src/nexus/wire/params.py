"""Bodies of control API writes. Unknown fields are refused, so a misspelt or smuggled field is an error."""

from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from nexus.kit import quantity
from nexus.wire import project


def _seconds(value: Any) -> Any:
    """Text such as `5m` is a duration; numbers are seconds already."""
    return quantity.parse_duration(value) if isinstance(value, str) else value


class Params(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DeployParams(Params):
    """Make a version the target of an environment. Sizes override the version's config for this deployment; so does what
    `strategy` names."""

    agent: str
    version_id: str
    environment: str = "development"
    replicas: int | None = Field(default=None, ge=0)
    cpu: str | None = None
    memory: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    strategy: project.Strategy | None = None


class ScaleParams(Params):
    environment: str | None = None
    replicas: int | None = Field(default=None, ge=0)
    autoscale: bool | None = None
    min_replicas: int | None = Field(default=None, ge=0)
    max_replicas: int | None = Field(default=None, ge=1)
    target_cpu: int | None = Field(default=None, ge=1, le=100)
    target_memory: int | None = Field(default=None, ge=1, le=100)
    cpu: str | None = None
    memory: str | None = None


class RollbackParams(Params):
    """`sessions`: what those of the version that is given up do; absent, as the version to go back to says."""

    environment: str | None = None
    version: str | None = None
    sessions: Literal["keep", "move"] | None = None


class MoveSessionsParams(Params):
    """Body of `POST /v1/agents/{name}/sessions:move`: the sessions of this old version go on on what serves now."""

    version: str = Field(max_length=256)
    environment: str | None = None


class PromoteParams(Params):
    """`variant` names the winner of an A/B test; absent, the first new one."""

    environment: str | None = None
    variant: str | None = None


class AbortParams(Params):
    environment: str | None = None


class SecretParams(Params):
    value: str = Field(repr=False, max_length=65536)


class KeyParams(Params):
    name: str = Field(default="", max_length=120)
    tenant: str | None = None
    roles: list[str] = Field(default_factory=lambda: ["developer"])
    environment: str | None = None
    agents: list[str] | None = None
    expires_in_s: float | None = Field(default=None, gt=0)
    requests_per_minute: int | None = Field(default=None, ge=1)


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=366 * 86400.0, allow_inf_nan=False)]


class SubmitParams(Params):
    """Body of `POST /agents/{name}/tasks`. Durations are seconds or text such as `90s`, `5m`, `2h`.

    It starts after `delay`, or at `run_at` (RFC 3339 with an offset). `queue_timeout` bounds its wait for a start,
    `run_timeout` one attempt, `total_timeout` everything. A higher `priority` starts earlier within its agent.
    """

    input: Any = None
    context: dict[str, Any] = Field(default_factory=dict)
    webhook: str | None = None
    session_id: str | None = None
    priority: int = Field(default=0, ge=-1000, le=1000)
    delay: Seconds | None = None
    run_at: AwareDatetime | None = None
    queue_timeout: Seconds | None = None
    run_timeout: Seconds | None = None
    total_timeout: Seconds | None = None
    max_attempts: int | None = Field(default=None, ge=1, le=50)


class BatchEntry(SubmitParams):
    """One task of a batch; `idempotency_key` as the header of the same name."""

    idempotency_key: str | None = None


class BatchParams(Params):
    """Body of `POST /agents/{name}/tasks:batch`: all of them are accepted in one commit, or none."""

    tasks: list[BatchEntry] = Field(min_length=1, max_length=10_000)


class TaskChangeParams(Params):
    """Body of `PATCH /tasks/{id}`."""

    priority: int = Field(ge=-1000, le=1000)


class AnswerParams(Params):
    """Body of `POST /tasks/{id}/answer`. `ask_id` may be left out when the task asks one thing."""

    answer: Any
    ask_id: str | None = None


class ReplayParams(Params):
    """Body of `POST /tasks/{id}/replay`: where it runs, the original's environment by default."""

    environment: str | None = None


class ScheduleParams(Params):
    """Body of `POST /v1/schedules`: either `cron` (five fields, read in `timezone`) or `at` (RFC 3339 with an offset).

    `catch_up` says what becomes of times the host was not up for: `skip` them, make up for the `last`, or for `all`.
    """

    name: str
    agent: str
    environment: str | None = None
    cron: str | None = Field(default=None, max_length=256)
    at: AwareDatetime | None = None
    timezone: str = Field(default="UTC", max_length=64)
    catch_up: Literal["skip", "last", "all"] = "last"
    task: SubmitParams = Field(default_factory=SubmitParams)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.cron is None) == (self.at is None):
            raise ValueError("give either cron or at")
        return self


class SessionParams(Params):
    """Body of `POST /v1/agents/{name}/sessions`."""

    session_id: str | None = Field(default=None, max_length=256)
    environment: str | None = None


class ExecParams(Params):
    """Body of `POST /v1/agents/{name}/sessions/{id}/exec`: a command as its words (no shell reads it), and its input."""

    command: list[str] = Field(min_length=1, max_length=256)
    stdin: str | None = Field(default=None, max_length=1_000_000)
    timeout_s: float = Field(default=60.0, gt=0, le=3600)


class DeadLettersParams(Params):
    """Which dead letters to queue again or to delete: these tasks, or all of an agent, at most `limit` of them."""

    task_ids: list[str] | None = Field(default=None, min_length=1, max_length=1000)
    agent: str | None = None
    environment: str | None = None
    limit: int = Field(default=1000, ge=1, le=1000)

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if (self.task_ids is None) == (self.agent is None):
            raise ValueError("name either task_ids or an agent")
        return self
