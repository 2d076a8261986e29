"""The settings of `hosting.models`: what the models door does for an agent's calls beyond passing them on."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from nexus.kit import quantity
from nexus.wire.project_quantity import Size, read, written
from nexus.wire.project_section import Section

_Ttl = Annotated[
    float,
    BeforeValidator(read(quantity.parse_duration)),
    Field(gt=0, le=30 * 86400.0, allow_inf_nan=False),
    written("300s", r"^\d+(\.\d+)?(ms|s|m|h|d)?$"),
]
_CacheSize = Annotated[Size, Field(le=1024**3)]
_Scope = Literal["agent", "tenant", "user"]
_SCOPE = "Who shares answers: this agent, all agents of the tenant, or one user of this agent (Nexus-User-Id)"


class ModelCache(Section):
    """Give a model's answer again to the same request, without asking the provider. Kept in each gateway's memory."""

    ttl: _Ttl = Field(default=300.0, description="How long an answer may be given again")
    size: _CacheSize = Field(default=64 * 1024 * 1024, description="Memory for answers in each gateway process")
    scope: _Scope = Field(default="agent", description=_SCOPE)
    always: bool = Field(default=False, description="Also when the request does not say temperature: 0")


class EmbeddingCache(Section):
    """Keep vectors text by text: only texts that were not embedded before go to the provider."""

    ttl: _Ttl = Field(default=7 * 86400.0, description="How long a vector is kept")
    size: _CacheSize = Field(default=64 * 1024 * 1024, description="Memory for vectors in each gateway process")
    scope: _Scope = Field(default="agent", description=_SCOPE)


class Models(Section):
    """For this agent's model calls. `cache: true` and `embedding_cache: true` stand for their defaults."""

    cache: ModelCache | None = None
    embedding_cache: EmbeddingCache | None = None
    audit_content: bool | None = Field(
        default=None, description="Whether prompts and answers are kept in the audit trail, redacted; absent: as the host does"
    )

    @field_validator("cache", "embedding_cache", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value

    def plan(self) -> dict[str, Any]:
        """What the gateway is told: only what was chosen."""
        return self.model_dump(exclude_none=True)
