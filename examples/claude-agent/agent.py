"""Answers from a price list: the Claude Agent SDK with a tool of its own, given to the host as its options.

The SDK's Claude Code program finds the host's models by ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY, and each session
goes on where it ended.
"""

import os

from claude_agent_sdk import ClaudeAgentOptions, create_sdk_mcp_server, tool

PRICES = {"paper": (4.50, "500 sheets"), "ink": (21.90, "cartridge"), "stapler": (9.80, "piece"), "desk lamp": (34.00, "piece")}


@tool("price", "Price and unit of an article, with a discount from 10 pieces on", {"article": str, "pieces": int})
async def price(asked: dict) -> dict:
    article, pieces = asked["article"].lower(), int(asked["pieces"])
    if article not in PRICES:
        return {"content": [{"type": "text", "text": f"There is no {article}; there are {', '.join(PRICES)}."}], "is_error": True}
    each, unit = PRICES[article]
    total = round(each * pieces * (0.9 if pieces >= 10 else 1), 2)
    return {"content": [{"type": "text", "text": f"{pieces} x {article} ({unit}): {total:.2f} EUR"}]}


agent = ClaudeAgentOptions(
    system_prompt="You sell office supplies. Use the price tool for every price and answer in one sentence.",
    model=os.environ.get("NEXUS_MODEL", "default"),
    mcp_servers={"shop": create_sdk_mcp_server("shop", tools=[price])},
    tools=[],
    allowed_tools=["mcp__shop__price"],
    setting_sources=[],
    max_turns=6,
)
