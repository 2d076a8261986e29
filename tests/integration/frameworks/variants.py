"""Other entry points of the frameworks, as their own documentation writes them."""

AGNO_TEAM = """
from agno.agent import Agent
from agno.models.openai import OpenAIChat
from agno.team import Team

def readability(text: str) -> str:
    \"\"\"How readable an English text is.\"\"\"
    return "119"

editor = Agent(name="editor", id="editor", model=OpenAIChat(id="default"), tools=[readability], telemetry=False)
agent = Team(name="desk", members=[editor], model=OpenAIChat(id="default"), telemetry=False)
"""

AGENT_FRAMEWORK_WORKFLOW = """
from agent_framework import Agent, WorkflowBuilder
from agent_framework.openai import OpenAIChatCompletionClient

def monthly_rate(amount: float) -> str:
    \"\"\"The monthly rate of a loan.\"\"\"
    return "100.00 a month"

client = OpenAIChatCompletionClient(model="default")
writer = Agent(client=client, name="writer", instructions="Write.", tools=[monthly_rate])
editor = Agent(client=client, name="editor", instructions="Edit.")
agent = WorkflowBuilder(start_executor=writer, output_from=[editor]).add_edge(writer, editor).build()
"""

CREWAI_FLOW = """
from crewai import LLM
from crewai.flow.flow import Flow, listen, start
from pydantic import BaseModel

llm = LLM(model="default", provider="openai", stream=True)

class State(BaseModel):
    input: str = ""
    said: list[str] = []

class Talk(Flow[State]):
    @start()
    def note(self):
        self.state.said.append(self.state.input)

    @listen(note)
    def answer(self):
        return llm.call("; ".join(self.state.said))

agent = Talk
"""

LANGGRAPH_FUNCTION = """
from langchain_openai import ChatOpenAI
from langgraph.func import entrypoint, task

model = ChatOpenAI(model="default", stream_usage=True)

@task
async def ask(messages):
    return await model.ainvoke(messages)

@entrypoint()
async def agent(text: str, *, previous=None):
    messages = [*(previous or []), {"role": "user", "content": text}]
    answer = await ask(messages)
    return entrypoint.final(value=answer.text, save=[*messages, {"role": "assistant", "content": answer.text}])
"""

SMOLAGENTS_CODE = """
from smolagents import CodeAgent, OpenAIModel, tool

@tool
def planting_dates(plant: str) -> str:
    \"\"\"When to sow a plant.

    Args:
        plant: a vegetable
    \"\"\"
    return "sow on 27 April"

agent = CodeAgent(tools=[planting_dates], model=OpenAIModel(model_id="default"), verbosity_level=0)
"""
