"""The project file `config.yaml` as a model: every form of document 1 and the settings of document 5, normalised.

`parse_project` in `nexus.wire.project_file` reads the YAML and reports errors with file, line and column.
After validation sizes are numbers (`cpu` in thousandths of a core, `memory` in bytes, durations in seconds) and every
way of writing the same setting (`autoscaling`, `runtime`) has been folded into `hosting`.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from nexus.core import errors, names
from nexus.kit import quantity
from nexus.wire import project_quantity
from nexus.wire.project_box import Box
from nexus.wire.project_budget import Budget
from nexus.wire.project_models import Models
from nexus.wire.project_section import Section, conflict

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_LONGEST_S = 30 * 24 * 3600.0


def _part(value: Any) -> Any:
    """A count, or per cent of the replicas."""
    text = str(value)
    number = text.removesuffix("%")
    if isinstance(value, bool | float) or not (number.isascii() and number.isdecimal()) or int(number) > 100:
        raise ValueError("expected a number of instances such as 1, or a part of them such as 25%")
    return value if isinstance(value, int) else int(text) if text == number else text


Cpu = Annotated[
    int,
    BeforeValidator(project_quantity.read(quantity.parse_cpu)),
    Field(gt=0, le=1_024_000),
    project_quantity.written("500m", r"^\d+(\.\d+)?m?$"),
]
Memory = Annotated[
    int,
    BeforeValidator(project_quantity.read(quantity.parse_bytes)),
    Field(ge=1024 * 1024, le=2**50),
    project_quantity.written("512Mi", r"^\d+(\.\d+)?\s*([KMGTP]i?B?|k|B)?$"),
]
Duration = Annotated[
    float,
    BeforeValidator(project_quantity.read(quantity.parse_duration)),
    Field(allow_inf_nan=False, le=_LONGEST_S),
    project_quantity.written("30s", r"^\d+(\.\d+)?(ms|s|m|h|d)?$"),
]
Percent = Annotated[int, Field(ge=1, le=100)]


class Replicas(Section):
    """Bounds within which the deployment scales; they narrow or widen those of the environment."""

    min: int | None = Field(default=None, ge=0, le=1000)
    max: int | None = Field(default=None, ge=1, le=1000)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise conflict(f"min ({self.min}) is above max ({self.max})", "min")
        return self


class ScalingMetric(Section):
    type: Literal["cpu", "memory", "custom"]
    name: Literal["queue_depth"] | None = None
    target: int = Field(ge=1)

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.type == "custom" and self.name is None:
            raise conflict("a custom metric needs a name: queue_depth", "type")
        if self.type != "custom" and self.name is not None:
            raise conflict(f"only a custom metric has a name; {self.type} needs none", "name")
        if self.type != "custom" and self.target > 100:
            raise conflict(f"the target of {self.type} is a percentage, 1 to 100", "target")
        return self


class Autoscaling(Section):
    """Both forms of document 1: `target_cpu`/`target_memory`, or `min_replicas`/`max_replicas` with `metrics`."""

    enabled: bool = True
    target_cpu: Percent | None = None
    target_memory: Percent | None = None
    min_replicas: int | None = Field(default=None, ge=0, le=1000)
    max_replicas: int | None = Field(default=None, ge=1, le=1000)
    metrics: list[ScalingMetric] = Field(default_factory=list, max_length=16)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas is not None and self.max_replicas is not None and self.min_replicas > self.max_replicas:
            raise conflict(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})", "min_replicas")
        named = [entry.name or entry.type for entry in self.metrics]
        named += [name for name in ("cpu", "memory") if getattr(self, f"target_{name}") is not None]
        if twice := next((name for name in named if named.count(name) > 1), None):
            raise conflict(f"{twice} has two targets; keep one", "metrics")
        return self

    def target(self, metric: Literal["cpu", "memory", "queue_depth"]) -> int | None:
        """The target of a metric, whichever form named it."""
        for entry in self.metrics:
            if metric in (entry.type, entry.name):
                return entry.target
        return {"cpu": self.target_cpu, "memory": self.target_memory}.get(metric)


class Health(Section):
    path: str = Field(default="/health", pattern=r"^/[A-Za-z0-9._~/-]*$", max_length=256)
    interval: Duration = Field(default=10.0, gt=0, le=3600)
    timeout: Duration = Field(default=5.0, gt=0, le=600)
    retries: int = Field(default=3, ge=1, le=100)


class Session(Section):
    """How sessions behave. `persist` keeps `self.state`, and with isolation: session the work directory, across restarts and
    redeploys."""

    persist: bool = True
    max_lifetime: Duration = Field(default=8 * 3600.0, gt=0, le=30 * 86400, description="The longest a session's worker lives")
    on_message: Literal["queue", "reject", "interrupt", "parallel"] = Field(
        default="queue", description="What becomes of a message while another one of its session runs"
    )
    freeze_after: Duration = Field(default=10.0, gt=0, le=86400, description="Idle time after which a session uses no CPU at all")
    stop_after: Duration = Field(default=900.0, gt=0, le=30 * 86400, description="Idle time after which its worker is stopped")
    warm: int | None = Field(default=None, ge=0, le=1000, description="Workers kept ready for new sessions (unset: by demand)")
    most: int | None = Field(default=None, ge=1, le=100_000, description="Sessions alive at once in one instance")
    work_size: Memory = Field(default=256 * 1024 * 1024, le=64 * 1024**3, description="How large a kept work directory may be")
    retention: Duration = Field(default=30 * 86400.0, gt=0, description="How long what is kept of an unused session stays")
    on_update: Literal["keep", "move"] = Field(
        default="keep",
        description="When this version replaces another: keep leaves sessions where they began, move takes them along",
    )
    drain: Duration | None = Field(
        default=None,
        gt=0,
        le=30 * 86400,
        description="How long sessions may go on on this version once it is replaced (unset: max_lifetime)",
    )


class TaskRetry(Section):
    """Pauses between attempts (exponential, with full jitter), and which failures of the agent are worth another one."""

    first: Duration = Field(default=1.0, gt=0, le=86400)
    longest: Duration = Field(default=30.0, gt=0, le=86400)
    factor: float = Field(default=2.0, ge=1, le=100)
    on: list[Literal["agent_failed", "exhausted", "invalid", "internal"]] = Field(
        default_factory=list, max_length=4, description="Kinds of a failed run that are tried again; lost runs always are"
    )


class Tasks(Section):
    """How this agent's tasks are queued and tried."""

    max_attempts: int | None = Field(default=None, ge=1, le=50)
    retry: TaskRetry | None = None
    concurrency: int | None = Field(default=None, ge=1, le=100_000, description="Tasks that run at once, over all instances")
    per_key: int | None = Field(default=None, ge=1, le=100_000, description="Tasks of one API key that run at once")
    max_pending: int | None = Field(default=None, ge=1, le=10_000_000, description="Tasks that may wait")
    queue_timeout: Duration | None = Field(default=None, gt=0, description="The longest a task may wait for its start")
    run_timeout: Duration | None = Field(default=None, gt=0, description="The longest one attempt may take")
    total_timeout: Duration | None = Field(default=None, gt=0, description="The longest from its submission to its end")
    unknown: Literal["repeat", "fail", "ask"] = Field(
        default="repeat",
        description="What a new attempt does with a call that was sent and whose answer nobody saw; ask: a person decides",
    )


class ResponseCache(Section):
    """Answers the gateway gives again without asking the agent: to the same tenant, body and `headers`; never streams, never
    runs of a named session."""

    enabled: bool = True
    ttl: Duration = Field(default=300.0, gt=0, description="How long an answer may be given again")
    size: Memory = Field(default=64 * 1024 * 1024, le=64 * 1024**3, description="Memory for answers in each gateway process")
    headers: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]] = Field(
        default_factory=list, max_length=16, description="Request headers that must be equal too"
    )


class CircuitBreaker(Section):
    """Take an instance out for a moment after `failure_threshold` failures in a row."""

    enabled: bool = True
    failure_threshold: int = Field(default=5, ge=1, le=1000)


class RolloutVariant(Section):
    """One arm of an A/B test; the weights of all arms make 100."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")
    version: str = Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,62}$")
    weight: int = Field(ge=1, le=99)


class RolloutAnalysis(Section):
    """When a difference between old and new counts: significant over all looks together, and large enough to act on."""

    alpha: float = Field(default=0.01, gt=0, le=0.2, description="Chance of rolling back a version that is no worse")
    samples: int = Field(default=20, ge=1, le=20_000, description="Runs of the new version before it is promoted")
    error_margin: float = Field(default=0.02, ge=0, le=1, description="Difference of error rates that is tolerated")
    latency_ratio: float = Field(default=1.25, ge=1, le=1000, description="How many times as long the median may take")
    latency_margin: Duration = Field(default=0.05, ge=0, description="How much longer the median may take in any case")


Part = Annotated[
    int | str,
    BeforeValidator(_part),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer", "minimum": 0, "maximum": 100}, {"type": "string", "pattern": r"^\d{1,3}%?$"}],
            "examples": [1, "25%"],
        }
    ),
]


def _or_name(schema: dict[str, Any]) -> None:
    """Editors accept the short form, too."""
    whole = dict(schema)
    schema.clear()
    schema["anyOf"] = [whole, {"type": "string", "enum": ["rolling", "blue-green", "canary", "ab"]}]


class Strategy(Section):
    """How a new version takes over: exchanged one by one, beside the old one and switched, by growing shares, or as a test."""

    model_config = ConfigDict(json_schema_extra=_or_name)

    type: Literal["rolling", "blue-green", "canary", "ab"] = "rolling"
    max_surge: Part = Field(default=1, description="Instances more than wanted during a rolling update: 2, 25%")
    max_unavailable: Part = Field(default=0, description="Instances less than wanted during a rolling update: 1, 25%")
    auto_promote: bool = Field(default=True, description="Without a person, once nothing speaks against it")
    keep: Duration = Field(default=300.0, ge=0, description="How long the old colour stays ready after a blue-green switch")
    steps: list[Annotated[int, Field(ge=1, le=100)]] = Field(
        default=[10, 50, 100], min_length=1, max_length=20, description="Shares of a canary in per cent, growing"
    )
    interval: Duration = Field(default=60.0, ge=1, description="How long each share of a canary is watched at least")
    split_by: Literal["session", "user"] = Field(default="session", description="What stays with one version")
    variants: list[RolloutVariant] = Field(default_factory=list, max_length=10, description="Arms of an A/B test")
    analysis: RolloutAnalysis = Field(default_factory=RolloutAnalysis)

    @model_validator(mode="before")
    @classmethod
    def _other_forms(cls, value: Any) -> Any:
        """`strategy: canary`, and Kubernetes' `type: RollingUpdate` with `rollingUpdate`."""
        if isinstance(value, str):
            return {"type": value}
        if not isinstance(value, dict) or value.get("type") != "RollingUpdate":
            return value
        bounds = value.get("rollingUpdate") or {}
        if not isinstance(bounds, dict):
            return value
        words = {"maxSurge": "max_surge", "maxUnavailable": "max_unavailable"}
        rest = {name: entry for name, entry in value.items() if name not in ("type", "rollingUpdate")}
        return {"type": "rolling", **rest, **{words.get(name, name): entry for name, entry in bounds.items()}}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if str(self.max_surge).rstrip("%") == "0" and str(self.max_unavailable).rstrip("%") == "0":
            raise conflict("max_surge and max_unavailable cannot both be 0: nothing could ever move", "max_surge")
        if self.steps != sorted(set(self.steps)):
            raise conflict("steps must grow from one to the next", "steps")
        if self.variants and sum(variant.weight for variant in self.variants) != 100:
            raise conflict("the weights of the variants must make 100", "variants")
        names_ = [variant.name for variant in self.variants]
        versions = [variant.version for variant in self.variants]
        if len(set(names_)) < len(names_) or len(set(versions)) < len(versions):
            raise conflict("two variants cannot have the same name or version", "variants")
        return self


class Hosting(Box):
    cpu: Cpu | None = Field(default=None, description="CPU per instance: 500m, 2")
    memory: Memory | None = Field(default=None, description="Memory per instance: 512Mi, 2GB")
    replicas: Replicas = Field(default_factory=Replicas)
    autoscaling: Autoscaling | None = None
    health: Health = Field(default_factory=Health)
    env: dict[str, str] = Field(default_factory=dict, max_length=256, description="Environment variables of the agent")
    secrets: list[str] = Field(default_factory=list, max_length=256, description="Names of secrets the agent needs")
    timeout: Duration = Field(default=8 * 3600.0, gt=0, description="The longest a run may take")
    start_timeout: Duration = Field(default=60.0, gt=0, le=3600)
    concurrency: int | None = Field(default=None, ge=1, le=10_000, description="Runs at once in one instance")
    isolation: Literal["session", "instance"] = Field(
        default="session", description="session: a box of its own for every session; instance: one for all of an instance"
    )
    session: Session = Field(default_factory=Session)
    load_balancer: Literal["round-robin", "least-connections", "sticky", "health-based"] = "least-connections"
    strategy: Strategy = Field(default_factory=Strategy, description="How a new version takes over")
    tasks: Tasks | None = Field(default=None, description="How tasks are queued, limited and tried again")
    cache: ResponseCache | None = Field(default=None, description="Give an answer again without asking the agent")
    budget: Budget | None = Field(default=None, description="Most that the agent's model calls may use")
    models: Models | None = Field(default=None, description="Caches and audited text of the agent's model calls")
    circuit_breaker: CircuitBreaker | None = Field(default=None, description="Leave instances that fail alone for a moment")
    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000, description="Most runs a minute")
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

    @model_validator(mode="after")
    def _variables(self) -> Self:
        for section, variables in (("env", list(self.env)), ("secrets", self.secrets)):
            for position, name in enumerate(variables):
                _check_variable(name, section, name if section == "env" else str(position))
        for position, name in enumerate(self.secrets):
            if name in self.env:
                raise conflict(f"{name} is under env as well; a name is a secret or a plain value", "secrets", str(position))
        for name in self.env:
            if "\0" in self.env[name]:
                raise conflict("an environment variable cannot hold a NUL character", "env", name)
        return self


def _check_variable(name: str, section: str, key: str) -> None:
    if not _VARIABLE.fullmatch(name):
        shown = name if len(name) <= 40 else name[:37] + "..."
        raise conflict(f"{shown!r} is not a variable name: letters, digits and '_', not beginning with a digit", section, key)
    if name.startswith("NEXUS_"):
        raise conflict(f"{name} is reserved: names that begin with NEXUS_ belong to the host", section, key)


class RuntimeResources(Section):
    memory: Memory | None = None
    cpu: Cpu | None = None
    gpu: Any = Field(default=None, description="Not supported by this host")

    @field_validator("gpu")
    @classmethod
    def _none(cls, value: Any) -> Any:
        if value not in (None, 0, False):
            raise ValueError("GPUs are not supported by this host; supported resources are cpu and memory")
        return None


class RuntimeHealthCheck(Section):
    path: str | None = Field(default=None, pattern=r"^/[A-Za-z0-9._~/-]*$", max_length=256)
    interval: Duration | None = Field(default=None, gt=0, le=3600)
    timeout: Duration | None = Field(default=None, gt=0, le=600)
    retries: int | None = Field(default=None, ge=1, le=100)


class RuntimeScaling(Section):
    auto_scale: bool = True
    min_replicas: int | None = Field(default=None, ge=0, le=1000)
    max_replicas: int | None = Field(default=None, ge=1, le=1000)
    cpu_threshold: Percent | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas is not None and self.max_replicas is not None and self.min_replicas > self.max_replicas:
            raise conflict(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})", "min_replicas")
        return self


class Runtime(Section):
    """Document 5's `runtime-config.yaml`: other words for the settings under `hosting`, which it is folded into."""

    mode: str | None = Field(default=None, description="process (or native): the only mode of this host")
    resources: RuntimeResources = Field(default_factory=RuntimeResources)
    health_check: RuntimeHealthCheck = Field(default_factory=RuntimeHealthCheck)
    scaling: RuntimeScaling | None = None

    @field_validator("mode")
    @classmethod
    def _supported(cls, value: str | None) -> str | None:
        if value not in (None, "process", "native"):
            raise ValueError(f"mode {value!r} is not supported by this host; supported modes are process and native")
        return value


class ProjectConfig(Section):
    """One `config.yaml`. `entrypoint` is `module:attribute`; absent, it is found (`agent.py`, `main.py`, `app.py`)."""

    name: str = Field(
        description="1 to 63 of a-z, 0-9 and '-'", json_schema_extra={"pattern": r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"}
    )
    version: str | None = Field(
        default=None, pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,62}$", description="Semantic version; absent: numbered"
    )
    description: str = Field(default="", max_length=4096)
    entrypoint: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*)?$",
        max_length=256,
        description="module:attribute; absent: found in agent.py, main.py or app.py",
    )
    hosting: Hosting = Field(default_factory=Hosting)
    autoscaling: Autoscaling | None = Field(default=None, description="Same as hosting.autoscaling")
    runtime: Runtime | None = Field(default=None, description="Document 5's form; folded into hosting")

    @field_validator("name")
    @classmethod
    def _label(cls, value: str) -> str:
        try:
            return names.parse_label(value)
        except errors.Invalid as error:
            raise ValueError(f"{error.message}: {error.cause}") from None

    @field_validator("version", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _folded(self) -> Self:
        self._fold_autoscaling(self.autoscaling, "autoscaling")
        if self.runtime is not None:
            self._fold_runtime(self.runtime)
        scaling, replicas = self.hosting.autoscaling, self.hosting.replicas
        if scaling is not None:
            for ours, theirs in (("min", scaling.min_replicas), ("max", scaling.max_replicas)):
                if None not in (theirs, getattr(replicas, ours)) and theirs != getattr(replicas, ours):
                    raise conflict(f"autoscaling.{ours}_replicas says {theirs}; keep one of them", "hosting", "replicas", ours)
        return self

    def _fold_autoscaling(self, scaling: Autoscaling | None, *path: str) -> None:
        if scaling is None or scaling is self.hosting.autoscaling:
            return
        if self.hosting.autoscaling is not None:
            raise conflict("scaling is set under hosting.autoscaling as well; keep one of them", *path)
        self.hosting.autoscaling = scaling

    def _fold_runtime(self, runtime: Runtime) -> None:
        for name in ("cpu", "memory"):
            self._fold_value(self.hosting, name, getattr(runtime.resources, name), ("runtime", "resources", name))
        for name in ("path", "interval", "timeout", "retries"):
            self._fold_value(self.hosting.health, name, getattr(runtime.health_check, name), ("runtime", "health_check", name))
        if (scaling := runtime.scaling) is not None:
            written = Autoscaling(
                enabled=scaling.auto_scale,
                target_cpu=scaling.cpu_threshold,
                min_replicas=scaling.min_replicas,
                max_replicas=scaling.max_replicas,
            )
            if self.hosting.autoscaling != written:
                self._fold_autoscaling(written, "runtime", "scaling")

    @staticmethod
    def _fold_value(section: Section, name: str, value: object, path: tuple[str, ...]) -> None:
        if value is None:
            return
        if name in section.model_fields_set and getattr(section, name) != value:
            raise conflict("the same setting has another value under hosting; keep one of them", *path)
        setattr(section, name, value)

    @property
    def scaling(self) -> Autoscaling | None:
        return self.hosting.autoscaling

    @property
    def replica_bounds(self) -> tuple[int | None, int | None]:
        """Fewest and most replicas as the file says them, in whichever form; None where it says nothing."""
        scaling, replicas = self.hosting.autoscaling, self.hosting.replicas
        fewest = replicas.min if replicas.min is not None else scaling.min_replicas if scaling else None
        most = replicas.max if replicas.max is not None else scaling.max_replicas if scaling else None
        return fewest, most
