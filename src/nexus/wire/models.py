"""What a host is told about models: providers, aliases, prices, budgets; in `models.yaml`, in the API and by the CLI alike.

Money is in US dollars, prices in US dollars per million tokens, durations are seconds or text such as `30s`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from nexus.kit import quantity
from nexus.wire.project_quantity import read, written
from nexus.wire.project_section import Section, conflict

NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
BUDGET_ID = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
Duration = Annotated[
    float,
    BeforeValidator(read(quantity.parse_duration)),
    Field(gt=0, le=86400.0, allow_inf_nan=False),
    written("30s", r"^\d+(\.\d+)?(ms|s|m|h|d)?$"),
]
ModelName = Annotated[str, Field(pattern=NAME)]
Dollars = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Percent = Annotated[int, Field(ge=1, le=1000)]
Warn = Annotated[list[Percent], Field(max_length=20)]
Kind = Literal["openai", "anthropic", "azure", "bedrock", "google", "mistral", "ollama", "vllm", "openai-compatible"]
Scope = Literal["tenant", "agent", "user", "session", "run"]
Unit = Literal["requests", "tokens", "cost"]
Period = Literal["minute", "day", "month", "total"]


class Price(Section):
    """US dollars for a million tokens of each kind; what is absent costs what it is part of."""

    input: Dollars = 0.0
    output: Dollars = 0.0
    cached: Dollars | None = None
    cache_write: Dollars | None = None
    request: Dollars | None = Field(default=None, description="US dollars for each call")


class Batch(Section):
    """Embeddings of a tenant that come within `window` go to the provider together, at most `most` texts at a time."""

    window: Annotated[Duration, Field(le=1.0)] = 0.005
    most: int = Field(default=64, ge=2, le=2048)


class ProviderModel(Section):
    """One model that a provider is known to have. `upstream`: its own name for it, absent: the same."""

    upstream: str | None = Field(default=None, max_length=256)
    context: int | None = Field(default=None, ge=1, le=1_000_000_000, description="Most tokens of a prompt")
    tags: list[str] = Field(default_factory=list, max_length=20)
    price: Price | None = None


class Provider(Section):
    """Somebody who answers model calls. Its models are `<provider>/<name>`, and by their bare name where `serves` fits."""

    kind: Kind = "openai-compatible"
    base_url: str | None = Field(default=None, max_length=1024, description="Absent: the kind's own")
    key: str | None = Field(
        default=None,
        max_length=256,
        pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+|stored)$",
        description="Where its key is: env:NAME of the host's environment, file:/path, or stored (given with provider set --key)",
    )
    dialects: list[Literal["openai", "anthropic"]] | None = Field(default=None, min_length=1)
    headers: dict[str, str] = Field(default_factory=dict, max_length=20)
    serves: list[str] = Field(default_factory=list, max_length=100, description="Names that lead here: gpt-*, my-model")
    models: dict[ModelName, ProviderModel] = Field(default_factory=dict, max_length=500)
    timeout: Duration | None = None
    first_byte: Duration | None = Field(default=None, description="Longest wait for the first byte of an answer")
    retries: int = Field(default=0, ge=0, le=5, description="Attempts more at this provider before the first byte")
    batch: Batch | None = Field(default=None, description="Send embeddings together; absent: each call by itself")
    translate: bool = Field(default=False, description="Translate the dialect it does not speak (nexus models translator)")
    prices: str | None = Field(default=None, max_length=64, description="Whose price list holds; absent: the kind's")
    auth: dict[str, Any] = Field(default_factory=dict, description="What the kind's own authentication needs")

    @field_validator("headers")
    @classmethod
    def _printable(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not (name.isascii() and name.replace("-", "").isalnum() and text.isascii() and text.isprintable()):
                raise ValueError(f"{name[:40]!r} is no header: names of letters, digits and '-', values of printable ASCII")
        return value


class Weighed(Section):
    model: ModelName
    weight: int = Field(default=1, ge=0, le=1000)


class Rule(Section):
    """The first rule that fits a call chooses its model: `use` names one, or a tag (`tag:small`: the cheapest that has it)."""

    use: ModelName
    below_tokens: int | None = Field(default=None, ge=1)
    above_tokens: int | None = Field(default=None, ge=0)
    without_tools: bool | None = None
    agent: str | None = Field(default=None, max_length=63)
    environment: str | None = Field(default=None, max_length=63)


class Route(Section):
    """An alias. `to`: models in order of preference (`gpt-5`, or `gpt-5:3` with a weight)."""

    to: list[Weighed] = Field(min_length=1, max_length=50)
    choose: Literal["order", "weight", "price"] = "order"
    fallback: list[ModelName] = Field(default_factory=list, max_length=20)
    last_resort: ModelName | None = Field(default=None, description="Asked when everything else failed: a local small model, say")
    on: list[Literal["error", "timeout", "rate", "quota"]] = Field(default=["error", "timeout", "rate", "quota"])
    rules: list[Rule] = Field(default_factory=list, max_length=50)
    trim_to: int | None = Field(default=None, ge=16, description="Leave the oldest messages out until so many tokens are left")

    @field_validator("to", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return (
            [parse_weighed(entry) if isinstance(entry, str) else entry for entry in value] if isinstance(value, list) else value
        )


def parse_weighed(text: str) -> dict[str, Any]:
    """`name` or `name:weight`. A colon that no number follows belongs to the name (`llama3:8b`)."""
    name, _, weight = text.rpartition(":")
    return {"model": name, "weight": int(weight)} if name and weight.isdecimal() and len(weight) <= 4 else {"model": text}


class BudgetSpec(Section):
    """A limit on models: `limit` of `unit` (requests, tokens, US dollars) in each `period` of UTC."""

    scope: Scope = "tenant"
    agent: str | None = Field(default=None, max_length=63)
    environment: str | None = Field(default=None, max_length=63)
    subject: str | None = Field(default=None, max_length=256, description="One user, session or run; absent: each has this much")
    unit: Unit = "cost"
    period: Period = "month"
    limit: Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
    warn: Warn = [50, 80, 100]
    webhook: str | None = Field(default=None, max_length=2048, description="URL that is told when a threshold is passed")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.unit != "cost" and self.limit != int(self.limit):
            raise conflict(f"a limit of {self.unit} is a whole number", "limit")
        if self.subject is not None and self.scope not in ("user", "session", "run"):
            raise conflict(f"the scope {self.scope} has no subject", "subject")
        return self


class ModelsFile(Section):
    """`$NEXUS_HOME/models.yaml`."""

    default: ModelName | None = Field(default=None, description="What `default` leads to")
    unknown: Literal["default", "refuse"] = Field(default="default", description="What becomes of a name that is not known")
    providers: dict[Annotated[str, Field(pattern=BUDGET_ID)], Provider] = Field(default_factory=dict, max_length=100)
    routes: dict[ModelName, Route] = Field(default_factory=dict, max_length=500)
    prices: dict[str, dict[str, Price]] = Field(
        default_factory=dict,
        description="By provider and model (or a pattern that ends in *): what holds instead of the list price",
    )
    budgets: dict[Annotated[str, Field(pattern=BUDGET_ID)], BudgetSpec] = Field(
        default_factory=dict, max_length=1000, description="Of the tenant `default`"
    )
