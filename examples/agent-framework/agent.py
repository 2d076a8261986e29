"""Says what a loan costs: an agent of Microsoft's Agent Framework with a tool, unchanged."""

import os
from typing import Annotated

from agent_framework import Agent
from agent_framework.openai import OpenAIChatCompletionClient


def monthly_rate(
    amount: Annotated[float, "what is borrowed"],
    years: Annotated[int, "how long it is paid back"],
    percent: Annotated[float, "interest a year"],
) -> str:
    """The monthly rate and the total of an annuity loan."""
    months, interest = years * 12, percent / 1200
    rate = amount / months if interest == 0 else amount * interest / (1 - (1 + interest) ** -months)
    return f"{rate:.2f} a month, {rate * months:.2f} in all"


agent = Agent(
    client=OpenAIChatCompletionClient(model=os.environ.get("NEXUS_MODEL", "default")),
    name="loans",
    instructions="You explain what loans cost. Use the tool for every calculation.",
    tools=[monthly_rate],
)
