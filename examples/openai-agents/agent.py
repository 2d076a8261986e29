"""Finds a time to meet: an OpenAI Agents SDK agent with two tools, unchanged.

The host sets OPENAI_BASE_URL and OPENAI_API_KEY, keeps the conversation of each session and streams tokens and tool calls.
"""

import datetime
import os
import zoneinfo

from agents import Agent, OpenAIChatCompletionsModel, function_tool
from openai import AsyncOpenAI


@function_tool
def time_in(zone: str, date: str, time: str, of: str = "UTC") -> str:
    """What the clock shows in `zone` (such as Europe/Berlin) when it is `date` `time` (2026-05-01, 14:00) in the zone `of`."""
    moment = datetime.datetime.fromisoformat(f"{date}T{time}").replace(tzinfo=zoneinfo.ZoneInfo(of))
    return moment.astimezone(zoneinfo.ZoneInfo(zone)).strftime("%A %Y-%m-%d %H:%M %Z")


@function_tool
def common_hours(zones: list[str], date: str) -> str:
    """Hours on `date`, in UTC, at which it is between 9:00 and 17:00 in all `zones`."""
    start = datetime.datetime.fromisoformat(f"{date}T00:00").replace(tzinfo=datetime.UTC)
    moments = [start + datetime.timedelta(hours=hour) for hour in range(24)]
    fitting = [m for m in moments if all(9 <= m.astimezone(zoneinfo.ZoneInfo(zone)).hour < 17 for zone in zones)]
    return ", ".join(moment.strftime("%H:%M") for moment in fitting) or "none"


agent = Agent(
    name="Meeting planner",
    instructions="You find times to meet across time zones. Use the tools for every calculation. Answer in one sentence.",
    model=OpenAIChatCompletionsModel(model=os.environ.get("NEXUS_MODEL", "default"), openai_client=AsyncOpenAI()),
    tools=[time_in, common_hours],
)
