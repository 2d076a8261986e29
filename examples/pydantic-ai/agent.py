"""Reads an invoice into checked fields: a Pydantic AI agent with typed output, unchanged.

The caller's `context` becomes the agent's `deps`: {"context": {"currency": "EUR", "tax_percent": 19}}. An invoice whose numbers
do not add up goes back to the model.
"""

import os
from dataclasses import dataclass
from decimal import Decimal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.models.openai import OpenAIChatModel


@dataclass
class Books:
    currency: str = "EUR"
    tax_percent: Decimal = Decimal(19)


class Line(BaseModel):
    text: str
    net: Decimal


class Invoice(BaseModel):
    number: str
    lines: list[Line] = Field(min_length=1)
    net: Decimal
    gross: Decimal


agent = Agent(
    OpenAIChatModel(os.environ.get("NEXUS_MODEL", "default")),
    name="invoice-reader",
    deps_type=Books,
    output_type=Invoice,
    retries=2,
)


@agent.instructions
def instructions(ctx: RunContext[Books]) -> str:
    return f"Read the invoice. Amounts are in {ctx.deps.currency}; use the tool to work out the gross amount."


@agent.tool
def gross_of(ctx: RunContext[Books], net: Decimal) -> str:
    """The gross amount of a net amount."""
    return str((net * (100 + Decimal(ctx.deps.tax_percent)) / 100).quantize(Decimal("0.01")))


@agent.output_validator
def adds_up(invoice: Invoice) -> Invoice:
    total = sum(line.net for line in invoice.lines)
    if total != invoice.net:
        raise ModelRetry(f"the lines add up to {total}, not to {invoice.net}")
    return invoice
