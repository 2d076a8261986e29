"""The rollout options of `deploy` as the `strategy` of a deployment. Pure; the host checks what only it can know."""

from collections.abc import Sequence
from typing import Any

import pydantic

from nexus.core import errors
from nexus.wire import project

_NEXT = "see the options: nexus ai agent deploy --help"


def read(
    *,
    kind: str | None,
    max_surge: str | None,
    max_unavailable: str | None,
    steps: str | None,
    interval: str | None,
    samples: int | None,
    keep: str | None,
    auto_promote: bool | None,
    variants: Sequence[str],
    split_by: str | None,
) -> dict[str, Any] | None:
    """What was given, checked (`Invalid`, code `strategy.invalid`); None when nothing was, so that config.yaml decides."""
    given: dict[str, Any] = {
        "type": kind,
        "max_surge": max_surge,
        "max_unavailable": max_unavailable,
        "steps": _steps(steps) if steps is not None else None,
        "interval": interval,
        "analysis": {"samples": samples} if samples is not None else None,
        "keep": keep,
        "auto_promote": auto_promote,
        "variants": [_variant(text) for text in variants] or None,
        "split_by": split_by,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return None
    if "type" not in given and (meant := _meant(given)) is not None:
        given["type"] = meant
    try:
        project.Strategy.model_validate(given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the strategy"
        raise errors.Invalid(
            f"{where}: {first['msg'].removeprefix('Value error, ')}", code="strategy.invalid", next_step=_NEXT
        ) from error
    return given


def stored_version(strategy: dict[str, Any] | None, in_folder: str | None) -> str | None:
    """A version of an A/B test to deploy from the host, when the folder's own is none of its variants."""
    versions = [variant["version"] for variant in (strategy or {}).get("variants", [])]
    return versions[-1] if versions and in_folder not in versions else None


def _meant(given: dict[str, Any]) -> str | None:
    """The strategy whose options these are."""
    for kind, names in (("ab", {"variants"}), ("canary", {"steps", "interval", "analysis"}), ("blue-green", {"keep"})):
        if names & given.keys():
            return kind
    return None


def _steps(text: str) -> list[int]:
    parts = [part.strip().removesuffix("%") for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 4 for part in parts):
        raise errors.Invalid(
            f"{text[:64]!r} are not the steps of a canary",
            code="strategy.invalid",
            cause="steps are per cent of the traffic, growing, with commas between them",
            next_step="--canary-steps 10,50,100",
        )
    return [int(part) for part in parts]


def _variant(text: str) -> dict[str, Any]:
    name, _, rest = text.partition("=")
    version, _, weight = rest.rpartition(":")
    if not name or not version or not (weight.isascii() and weight.isdecimal() and len(weight) < 4):
        raise errors.Invalid(
            f"{text[:64]!r} is not a variant",
            code="strategy.invalid",
            cause="a variant is name=version:weight, the weight in per cent",
            next_step="--variant control=1.0.0:50 --variant treatment=1.1.0:50",
        )
    return {"name": name, "version": version, "weight": int(weight)}
