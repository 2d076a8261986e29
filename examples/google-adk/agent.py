"""Keeps a trip's expenses: a Google ADK agent whose tools write to ADK's session state, unchanged.

The host keeps that state for each session, so the list is still there after a restart or a redeploy. The model is the host's:
LiteLLM finds it by OPENAI_API_BASE and OPENAI_API_KEY, which are set in the box.
"""

import os

from google.adk.agents import Agent
from google.adk.models.lite_llm import LiteLlm
from google.adk.tools import ToolContext


def add_expense(what: str, amount: float, tool_context: ToolContext) -> dict:
    """Note an expense.

    Args:
        what: what the money was spent on
        amount: how much
    """
    expenses = [*tool_context.state.get("expenses", []), {"what": what, "amount": amount}]
    tool_context.state["expenses"] = expenses
    return {"noted": what, "total": round(sum(entry["amount"] for entry in expenses), 2)}


def report(tool_context: ToolContext) -> dict:
    """All expenses so far and their total."""
    expenses = tool_context.state.get("expenses", [])
    return {"expenses": expenses, "total": round(sum(entry["amount"] for entry in expenses), 2)}


agent = Agent(
    name="expenses",
    model=LiteLlm(model="openai/" + os.environ.get("NEXUS_MODEL", "default")),
    instruction="You keep the expenses of a trip. Note each one with add_expense, and use report when asked for the total.",
    tools=[add_expense, report],
)
