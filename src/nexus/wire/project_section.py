"""What every section of `config.yaml` has in common: no unknown keys, empty keys count as absent, contradictions have a place."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


def conflict(message: str, *path: str) -> PydanticCustomError:
    """A contradiction between settings, reported at the key `path` counted from the section that found it."""
    return PydanticCustomError("conflict", "{message}", {"message": message, "path": path})


class Section(BaseModel):
    """A mapping of the file. A key without a value (all of its lines commented out, say) counts as absent."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: entry for name, entry in value.items() if entry is not None or name not in cls.model_fields}
