"""Turns rough notes into a briefing: a CrewAI crew of an analyst and a writer, unchanged.

The host sets OPENAI_BASE_URL and OPENAI_API_KEY. `{notes}` is the input; `{history}` is what the session said before.
"""

import os

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool

llm = LLM(model=os.environ.get("NEXUS_MODEL", "default"), provider="openai")


@tool("count_words")
def count_words(text: str) -> str:
    """How many words a text has, and how long it takes to read it aloud."""
    words = len(text.split())
    return f"{words} words, {round(words / 150 * 60)} seconds aloud"


analyst = Agent(
    role="Analyst", goal="Find what matters in notes", backstory="You read notes and keep decisions, owners and dates.", llm=llm
)
writer = Agent(
    role="Writer",
    goal="Write short briefings",
    backstory="You write so that busy people understand.",
    llm=llm,
    tools=[count_words],
)
points = Task(
    name="points",
    description="List the decisions, owners, dates and open questions in these notes: {notes}\nSaid before: {history}",
    expected_output="A list, one point on a line",
    agent=analyst,
)
briefing = Task(
    name="briefing",
    description="Write a briefing of at most 120 words from the points. Check its length with count_words.",
    expected_output="The briefing",
    agent=writer,
    context=[points],
)
agent = Crew(agents=[analyst, writer], tasks=[points, briefing])
