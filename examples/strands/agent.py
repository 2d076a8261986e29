"""Plans a recipe for other numbers of guests: a Strands agent with a tool, unchanged."""

import os
from fractions import Fraction

from strands import Agent, tool
from strands.models.openai import OpenAIModel


@tool
def scale(amount: str, guests: int, for_guests: int) -> str:
    """An ingredient's amount for another number of guests.

    Args:
        amount: a number, such as 250 or 1/2
        guests: for how many guests it is
        for_guests: for how many guests it should be
    """
    return f"{float(Fraction(amount) * for_guests / guests):g}"


agent = Agent(
    model=OpenAIModel(model_id=os.environ.get("NEXUS_MODEL", "default")),
    system_prompt="You change recipes for other numbers of guests. Use the tool for every amount.",
    tools=[scale],
    callback_handler=None,
)
