"""What an entry of the route feed must look like before anything of it is used. Pure; called by `routes`.

Names and versions end in header lines and in records, so what could break a line is refused here, once, and not at each use.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from nexus.core import names

_ID = re.compile(r"[!#-\[\]-~]{1,256}")  # visible ASCII but quotes and backslash
_TENANT = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HASH = re.compile(r"[0-9a-z]{1,128}")
_BALANCERS = ("round-robin", "least-connections", "sticky", "health-based")


def check(path: str, value: Any) -> None:
    """Nothing, or ValueError that names the entry and the rule. Kinds that are not known here pass."""
    kind, _, name = path.partition("/")
    checks = _CHECKS.get(kind)
    if checks is None:
        return
    if not isinstance(value, Mapping):
        raise ValueError(f"{path} is not an object")
    try:
        checks(name, value)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error if isinstance(error, ValueError) else repr(error)}") from error


def check_number(value: object, what: str, *, least: float = 0.0, most: float = 1e12) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not least <= value <= most:
        raise ValueError(f"{what} is not a number from {least:g} to {most:g}")


def _check_text(value: object, what: str, pattern: re.Pattern[str] = _ID) -> None:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise ValueError(f"{what} is not a name")


def _check_deployment(name: str, value: Mapping[str, Any]) -> None:
    tenant, agent, environment = name.split("/")
    _check_text(tenant, "the tenant", _TENANT)
    if not names.is_label(agent) or not names.is_label(environment):
        raise ValueError("it is not tenant/agent/environment")
    _check_text(value["id"], "id")
    check_number(value["revision"], "revision")
    if value["balancer"] not in _BALANCERS:
        raise ValueError("its balancer is not known")
    for field in ("timeout_s", "wait_s", "max_queue"):
        check_number(value[field], field)
    if value["max_concurrency"] is not None:
        check_number(value["max_concurrency"], "max_concurrency", least=1)
    listed = [*value["instances"], *(value.get("idle") or ()), *(value.get("draining") or ())]
    for one in listed:
        _check_text(one["id"], "an instance's id")
        version = one["version"]
        if not isinstance(version, str) or len(version) > 256 or not (version.isprintable() or not version):
            raise ValueError("an instance's version cannot stand in a header")
    if len({one["id"] for one in listed}) != len(listed):
        raise ValueError("an instance is listed twice")
    asleep = value.get("asleep") or ()
    if not isinstance(asleep, list | tuple) or not all(isinstance(one, str) and 0 < len(one) <= 256 for one in asleep):
        raise ValueError("asleep are not versions")


def _check_key(name: str, value: Mapping[str, Any]) -> None:
    _check_text(name, "the hash", _HASH)
    _check_text(value["id"], "id")
    _check_text(value["tenant"], "tenant", _TENANT)
    if not isinstance(value["roles"], list) or not all(isinstance(role, str) for role in value["roles"]):
        raise ValueError("roles are not names")
    if value["expires_at"] is not None:
        check_number(value["expires_at"], "expires_at")


def _check_token(name: str, value: Mapping[str, Any]) -> None:
    _check_text(name, "the hash", _HASH)
    _check_text(value["instance_id"], "instance_id")
    _check_text(value["tenant"], "tenant", _TENANT)


def _check_tenant(name: str, value: Mapping[str, Any]) -> None:
    _check_text(name, "the tenant", _TENANT)
    if value["requests_per_minute"] is not None:
        check_number(value["requests_per_minute"], "requests_per_minute", least=1)


def _check_settings(name: str, value: Mapping[str, Any]) -> None:
    for field in ("hosts", "origins"):
        listed = value.get(field, ())
        if not isinstance(listed, list | tuple) or not all(isinstance(one, str) for one in listed):
            raise ValueError(f"{field} are not names")
    if value.get("max_body_bytes"):
        check_number(value["max_body_bytes"], "max_body_bytes", least=1)


_CHECKS: Mapping[str, Callable[[str, Mapping[str, Any]], None]] = {
    "deployment": _check_deployment,
    "key": _check_key,
    "token": _check_token,
    "tenant": _check_tenant,
    "settings": _check_settings,
}
