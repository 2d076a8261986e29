"""Plans what to plant when: a smolagents agent with a tool, unchanged. It remembers what the session said before."""

import datetime
import os

from smolagents import OpenAIModel, ToolCallingAgent, tool

WEEKS = {"tomato": (-6, 10), "lettuce": (-2, 8), "bean": (1, 9), "carrot": (-3, 12), "pumpkin": (2, 14)}


@tool
def planting_dates(plant: str, last_frost: str) -> str:
    """When to sow a plant and when to harvest it.

    Args:
        plant: tomato, lettuce, bean, carrot or pumpkin
        last_frost: the day of the last frost, such as 2027-04-20
    """
    if plant.lower() not in WEEKS:
        return f"{plant} is not known; known are {', '.join(WEEKS)}"
    sow, ripe = WEEKS[plant.lower()]
    sown = datetime.date.fromisoformat(last_frost) + datetime.timedelta(weeks=sow)
    return f"{plant}: sow on {sown:%d %B}, harvest from {sown + datetime.timedelta(weeks=ripe):%d %B} on"


agent = ToolCallingAgent(
    tools=[planting_dates],
    model=OpenAIModel(model_id=os.environ.get("NEXUS_MODEL", "default")),
    instructions="You plan vegetable gardens. Take every date from the tool.",
    max_steps=8,
    verbosity_level=0,
)
