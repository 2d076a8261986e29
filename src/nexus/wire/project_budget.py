"""The settings of `hosting.budget`: what an agent's model calls may use, as a whole and by run, session and user."""

from typing import Annotated, Any

from pydantic import AliasChoices, Field

from nexus.wire.project_section import Section

_Count = Annotated[int, Field(ge=0, le=10**15)]
_Dollars = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
_UNITS = ("requests", "tokens", "cost")
_PERIODS = ("minute", "day", "month")


class Each(Section):
    """What one run, session or user may use: in all, or in each period."""

    requests: _Count | None = None
    tokens: _Count | None = None
    cost: _Dollars | None = Field(default=None, description="US dollars")
    requests_per_minute: _Count | None = None
    requests_per_day: _Count | None = None
    requests_per_month: _Count | None = None
    tokens_per_minute: _Count | None = None
    tokens_per_day: _Count | None = None
    tokens_per_month: _Count | None = None
    cost_per_minute: _Dollars | None = None
    cost_per_day: _Dollars | None = None
    cost_per_month: _Dollars | None = None

    def limits(self, scope: str) -> list[dict[str, Any]]:
        found = []
        for unit in _UNITS:
            for period, name in (("total", unit), *((one, f"{unit}_per_{one}") for one in _PERIODS)):
                value = getattr(self, name, None)
                if value is not None:
                    found.append({"scope": scope, "unit": unit, "period": period, "limit": value})
        return found


class Budget(Section):
    """Most that this agent's model calls may use in this environment. Money is in US dollars, days and months are of UTC."""

    requests_per_minute: _Count | None = None
    requests_per_day: _Count | None = None
    requests_per_month: _Count | None = None
    tokens_per_minute: _Count | None = Field(
        default=None, validation_alias=AliasChoices("tokens_per_minute", "max_tokens_per_minute")
    )
    tokens_per_day: _Count | None = None
    tokens_per_month: _Count | None = None
    cost_per_minute: _Dollars | None = None
    cost_per_day: _Dollars | None = Field(default=None, description="US dollars")
    cost_per_month: _Dollars | None = None
    run: Each | None = Field(default=None, description="What each run may use")
    session: Each | None = Field(default=None, description="What each session may use")
    user: Each | None = Field(default=None, description="What each user (Nexus-User-Id) may use")
    warn: list[Annotated[int, Field(ge=1, le=1000)]] = Field(
        default=[50, 80, 100], max_length=20, description="Percentages at which somebody is told"
    )
    webhook: str | None = Field(default=None, max_length=2048, description="URL that is told when a percentage is passed")

    def plan(self) -> dict[str, Any]:
        """What the models room is told: `limits`, `warn`, `webhook`."""
        own = Each(**{name: getattr(self, name) for name in Each.model_fields if name in Budget.model_fields})
        limits = own.limits("agent")
        for scope in ("run", "session", "user"):
            each: Each | None = getattr(self, scope)
            limits += each.limits(scope) if each is not None else []
        return {"limits": limits, "warn": self.warn, "webhook": self.webhook}
