"""Streams: what an async generator yields reaches the client at once."""

from nexus.ai.agents import Agent


class Storyteller(Agent):
    """Tells about a subject in the model's words, as they come."""

    async def process(self, input):
        self.progress(5, "asking the model")
        async for text in self.llm.stream(str(input), system="Answer in a few short sentences.", max_tokens=200):
            yield text
        self.progress(100, "done")
