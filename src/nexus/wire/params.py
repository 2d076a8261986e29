"""Bodies of control API writes. Unknown fields are refused, so a misspelt or smuggled field is an error."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from nexus.wire import project


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
    environment: str | None = None
    version: str | None = None


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


class SubmitParams(Params):
    """Body of `POST /agents/{name}/tasks`."""

    input: Any = None
    context: dict[str, Any] = Field(default_factory=dict)
    webhook: str | None = None
    session_id: str | None = None
