"""The project file `config.yaml` as a model: every form of document 1 and the settings of document 5, normalised.

`parse_project` in `nexus.wire.project_file` reads the YAML and reports errors with file, line and column.
After validation sizes are numbers (`cpu_millis`, `memory_bytes`) and both autoscaling forms are one.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from nexus.kit import quantity

Cpu = Annotated[int, BeforeValidator(lambda value: quantity.parse_cpu(value))]
Memory = Annotated[int, BeforeValidator(lambda value: quantity.parse_bytes(value))]
Duration = Annotated[float, BeforeValidator(lambda value: quantity.parse_duration(value))]
Percent = Annotated[int, Field(ge=1, le=100)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Replicas(Section):
    """Bounds within which the deployment scales; they narrow or widen those of the environment."""

    min: int | None = Field(default=None, ge=0, le=1000)
    max: int | None = Field(default=None, ge=1, le=1000)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class ScalingMetric(Section):
    type: Literal["cpu", "memory", "custom"]
    name: Literal["queue_depth"] | None = None
    target: int = Field(ge=1)

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.type == "custom" and self.name is None:
            raise ValueError("a custom metric needs a name: queue_depth")
        if self.type != "custom" and self.target > 100:
            raise ValueError(f"the target of {self.type} is a percentage, 1 to 100")
        return self


class Autoscaling(Section):
    """Both forms of document 1: `target_cpu`/`target_memory`, or `min_replicas`/`max_replicas` with `metrics`."""

    enabled: bool = True
    target_cpu: Percent | None = None
    target_memory: Percent | None = None
    min_replicas: int | None = Field(default=None, ge=0, le=1000)
    max_replicas: int | None = Field(default=None, ge=1, le=1000)
    metrics: list[ScalingMetric] = Field(default_factory=list)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas is not None and self.max_replicas is not None and self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})")
        return self

    def target(self, metric: Literal["cpu", "memory", "queue_depth"]) -> int | None:
        """The target of a metric, whichever form named it."""
        for entry in self.metrics:
            if metric in (entry.type, entry.name):
                return entry.target
        return {"cpu": self.target_cpu, "memory": self.target_memory}.get(metric)


class Health(Section):
    path: str = Field(default="/health", pattern=r"^/[A-Za-z0-9._~/-]*$")
    interval: Duration = Field(default=10.0, gt=0, le=3600)
    timeout: Duration = Field(default=5.0, gt=0, le=600)
    retries: int = Field(default=3, ge=1, le=100)


class Session(Section):
    """How sessions behave. `persist` keeps `self.state` across restarts and redeploys."""

    persist: bool = True
    max_lifetime: Duration = Field(default=8 * 3600.0, gt=0)


class Hosting(Section):
    cpu: Cpu | None = Field(default=None, description="CPU per instance: 500m, 2")
    memory: Memory | None = Field(default=None, description="Memory per instance: 512Mi, 2GB")
    replicas: Replicas = Field(default_factory=Replicas)
    autoscaling: Autoscaling | None = None
    health: Health = Field(default_factory=Health)
    env: dict[str, str] = Field(default_factory=dict)
    secrets: list[str] = Field(default_factory=list)
    timeout: Duration = Field(default=8 * 3600.0, gt=0, description="The longest a run may take")
    start_timeout: Duration = Field(default=60.0, gt=0, le=3600)
    concurrency: int | None = Field(default=None, ge=1, description="Runs at once in one instance")
    isolation: Literal["instance", "session"] | None = None
    session: Session = Field(default_factory=Session)
    load_balancer: Literal["round-robin", "least-connections", "sticky", "health-based"] = "least-connections"
    python: str | None = Field(default=None, pattern=r"^\d+\.\d+(\.\d+)?$")

    @field_validator("env", mode="before")
    @classmethod
    def _scalars(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                name: str(entry).lower() if isinstance(entry, bool) else str(entry) if isinstance(entry, int | float) else entry
                for name, entry in value.items()
            }
        return value


class ProjectConfig(Section):
    """One `config.yaml`. `entrypoint` is `module:attribute`; absent, it is found (`agent.py`, `main.py`, `app.py`)."""

    name: str
    version: str | None = Field(
        default=None, pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,62}$", description="Semantic version; absent: numbered"
    )
    description: str = ""
    entrypoint: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$")
    hosting: Hosting = Field(default_factory=Hosting)
    autoscaling: Autoscaling | None = Field(default=None, description="Same as hosting.autoscaling")
    runtime: dict[str, Any] | None = Field(default=None, description="Document 5's runtime-config form")

    @field_validator("version", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) else value

    @property
    def scaling(self) -> Autoscaling | None:
        return self.hosting.autoscaling or self.autoscaling
