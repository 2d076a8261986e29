"""First agents in each framework: the code a template begins with, what it needs, the room it wants. `{name}` is the agent's."""

from dataclasses import dataclass

from nexus.cli.agent import app_templates


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameworkTemplate:
    code: str
    requirements: str
    attribute: str = "agent"
    memory: str = "512Mi"


_OPENAI_AGENTS = '''\
"""{name}: an agent of the OpenAI Agents SDK. The host sets OPENAI_BASE_URL and OPENAI_API_KEY."""

import datetime
import os

from agents import Agent, OpenAIChatCompletionsModel, function_tool
from openai import AsyncOpenAI


@function_tool
def today() -> str:
    """The date and the time, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%A %Y-%m-%d %H:%M")


agent = Agent(
    name="{name}",
    instructions="You are a helpful assistant. Answer briefly.",
    model=OpenAIChatCompletionsModel(model=os.environ.get("NEXUS_MODEL", "default"), openai_client=AsyncOpenAI()),
    tools=[today],
)
'''

_GOOGLE_ADK = '''\
"""{name}: a Google ADK agent. The host sets OPENAI_API_BASE and OPENAI_API_KEY."""

import os

from google.adk.agents import Agent
from google.adk.models.lite_llm import LiteLlm
from google.adk.tools import ToolContext


def remember(fact: str, tool_context: ToolContext) -> dict:
    """Remember a fact about the user for the rest of the conversation.

    Args:
        fact: what to remember
    """
    facts = [*tool_context.state.get("facts", []), fact]
    tool_context.state["facts"] = facts
    return {"known": facts}


agent = Agent(
    name="assistant",
    model=LiteLlm(model="openai/" + os.environ.get("NEXUS_MODEL", "default")),
    instruction="You are a helpful assistant. Answer briefly.",
    tools=[remember],
)
'''

_ANTHROPIC = '''\
"""{name}: the Anthropic SDK in a plain agent. The host sets ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY.

Its model must speak Anthropic's API; name one in NEXUS_MODEL (hosting.env in config.yaml) where the host's default does not.
"""

import os

import anthropic

from nexus.ai.agents import Agent

client = anthropic.AsyncAnthropic()


class Assistant(Agent):
    async def process(self, input: str):
        messages = [*self.state.get("messages", []), {"role": "user", "content": input}]
        async with client.messages.stream(
            model=os.environ.get("NEXUS_MODEL", "default"),
            max_tokens=500,
            system="You are a helpful assistant. Answer briefly.",
            messages=messages,
        ) as stream:
            async for text in stream.text_stream:
                yield text
            answer = await stream.get_final_text()
        self.state["messages"] = [*messages, {"role": "assistant", "content": answer}]


agent = Assistant()
'''

_CLAUDE_AGENT = '''\
"""{name}: the Claude Agent SDK. The host sets ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY.

Its model must speak Anthropic's API; name one in NEXUS_MODEL (hosting.env in config.yaml) where the host's default does not.
"""

import datetime
import os

from claude_agent_sdk import ClaudeAgentOptions, create_sdk_mcp_server, tool


@tool("today", "The date and the time, in UTC", {})
async def today(asked: dict) -> dict:
    return {"content": [{"type": "text", "text": datetime.datetime.now(datetime.UTC).strftime("%A %Y-%m-%d %H:%M")}]}


agent = ClaudeAgentOptions(
    system_prompt="You are a helpful assistant. Answer briefly.",
    model=os.environ.get("NEXUS_MODEL", "default"),
    mcp_servers={"own": create_sdk_mcp_server("own", tools=[today])},
    tools=[],
    allowed_tools=["mcp__own__today"],
    setting_sources=[],
    max_turns=8,
)
'''

_CREWAI = '''\
"""{name}: a CrewAI crew. The host sets OPENAI_BASE_URL and OPENAI_API_KEY."""

import os

from crewai import LLM, Agent, Crew, Task

llm = LLM(model=os.environ.get("NEXUS_MODEL", "default"), provider="openai")

assistant = Agent(role="Assistant", goal="Answer questions", backstory="You are helpful and brief.", llm=llm)
answer = Task(
    name="answer",
    description="Answer this: {question}\\nSaid before in this conversation: {history}",
    expected_output="A short answer",
    agent=assistant,
)
agent = Crew(agents=[assistant], tasks=[answer])
'''

_PYDANTIC_AI = '''\
"""{name}: a Pydantic AI agent. The host sets OPENAI_BASE_URL and OPENAI_API_KEY."""

import datetime
import os

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel

agent = Agent(
    OpenAIChatModel(os.environ.get("NEXUS_MODEL", "default")),
    name="{name}",
    instructions="You are a helpful assistant. Answer briefly.",
)


@agent.tool_plain
def today() -> str:
    """The date and the time, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%A %Y-%m-%d %H:%M")
'''

_STRANDS = '''\
"""{name}: a Strands agent. The host sets OPENAI_BASE_URL and OPENAI_API_KEY."""

import datetime
import os

from strands import Agent, tool
from strands.models.openai import OpenAIModel


@tool
def today() -> str:
    """The date and the time, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%A %Y-%m-%d %H:%M")


agent = Agent(
    model=OpenAIModel(model_id=os.environ.get("NEXUS_MODEL", "default")),
    system_prompt="You are a helpful assistant. Answer briefly.",
    tools=[today],
    callback_handler=None,
)
'''

_AGNO = '''\
"""{name}: an Agno agent. The host sets OPENAI_BASE_URL and OPENAI_API_KEY."""

import datetime
import os

from agno.agent import Agent
from agno.models.openai import OpenAIChat


def today() -> str:
    """The date and the time, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%A %Y-%m-%d %H:%M")


agent = Agent(
    name="{name}",
    model=OpenAIChat(id=os.environ.get("NEXUS_MODEL", "default")),
    instructions="You are a helpful assistant. Answer briefly.",
    tools=[today],
)
'''

_AGENT_FRAMEWORK = '''\
"""{name}: an agent of Microsoft's Agent Framework. The host sets OPENAI_BASE_URL and OPENAI_API_KEY."""

import datetime
import os

from agent_framework import Agent
from agent_framework.openai import OpenAIChatCompletionClient


def today() -> str:
    """The date and the time, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%A %Y-%m-%d %H:%M")


agent = Agent(
    client=OpenAIChatCompletionClient(model=os.environ.get("NEXUS_MODEL", "default")),
    name="{name}",
    instructions="You are a helpful assistant. Answer briefly.",
    tools=[today],
)
'''

_LLAMA_INDEX = '''\
"""{name}: a LlamaIndex workflow. The host sets OPENAI_BASE_URL and OPENAI_API_KEY."""

import os

from openai import AsyncOpenAI
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

client = AsyncOpenAI()


class Piece(Event):
    delta: str


class Assistant(Workflow):
    @step
    async def answer(self, ctx: Context, ev: StartEvent) -> StopEvent:
        messages = [*await ctx.store.get("messages", default=[]), {"role": "user", "content": ev.input}]
        said = ""
        model = os.environ.get("NEXUS_MODEL", "default")
        stream = await client.chat.completions.create(model=model, messages=messages, stream=True)
        async with stream:
            async for chunk in stream:
                if chunk.choices and (piece := chunk.choices[0].delta.content):
                    said += piece
                    ctx.write_event_to_stream(Piece(delta=piece))
        await ctx.store.set("messages", [*messages, {"role": "assistant", "content": said}])
        return StopEvent(result=said)


agent = Assistant(timeout=300)
'''

_SMOLAGENTS = '''\
"""{name}: a smolagents agent. The host sets OPENAI_BASE_URL and OPENAI_API_KEY."""

import datetime
import os

from smolagents import OpenAIModel, ToolCallingAgent, tool


@tool
def today() -> str:
    """The date and the time, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%A %Y-%m-%d %H:%M")


agent = ToolCallingAgent(
    tools=[today],
    model=OpenAIModel(model_id=os.environ.get("NEXUS_MODEL", "default")),
    instructions="Answer briefly.",
    max_steps=8,
    verbosity_level=0,
)
'''

FRAMEWORKS = {
    "openai-agents": FrameworkTemplate(code=_OPENAI_AGENTS, requirements="openai-agents>=0.20\n"),
    "google-adk": FrameworkTemplate(code=_GOOGLE_ADK, requirements="google-adk>=2.0\nlitellm>=1.80\nmcp\n", memory="1Gi"),
    "crewai": FrameworkTemplate(code=_CREWAI, requirements="crewai>=1.10\n", memory="2Gi"),
    "claude-agent": FrameworkTemplate(code=_CLAUDE_AGENT, requirements="claude-agent-sdk>=0.2\n", memory="2Gi"),
    "anthropic": FrameworkTemplate(code=_ANTHROPIC, requirements="anthropic>=1.0\n"),
    "pydantic-ai": FrameworkTemplate(code=_PYDANTIC_AI, requirements="pydantic-ai-slim[openai]>=2.0\n"),
    "strands": FrameworkTemplate(code=_STRANDS, requirements="strands-agents[openai]>=1.30\n"),
    "agno": FrameworkTemplate(code=_AGNO, requirements="agno>=3.0\nopenai\n"),
    "agent-framework": FrameworkTemplate(
        code=_AGENT_FRAMEWORK, requirements="agent-framework-core>=1.0\nagent-framework-openai>=1.0\n"
    ),
    "llama-index": FrameworkTemplate(code=_LLAMA_INDEX, requirements="llama-index-workflows>=2.0\nopenai\n"),
    "smolagents": FrameworkTemplate(code=_SMOLAGENTS, requirements="smolagents[openai]>=1.20\n"),
    "asgi": FrameworkTemplate(code=app_templates.ASGI, requirements="fastapi>=0.115\nopenai\n", attribute="app"),
    "agentcore": FrameworkTemplate(
        code=app_templates.AGENTCORE, requirements="bedrock-agentcore>=1.0\nopenai\n", attribute="app"
    ),
    "foundry": FrameworkTemplate(
        code=app_templates.FOUNDRY, requirements="azure-ai-agentserver-responses>=2.0\nopenai\n", attribute="app"
    ),
}
