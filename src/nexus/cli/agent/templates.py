"""The projects `nexus ai agent init` makes: file name to content, for each template."""

from collections.abc import Callable, Mapping

from nexus.cli.agent import framework_templates

_CONFIG = """\
# yaml-language-server: $schema=.nexus/config.schema.json
name: {name}
version: 0.1.0
entrypoint: agent:{attribute}

hosting:
  cpu: 500m
  memory: 512Mi
  # network: egress              # nothing but the platform's models, state and traces, and what is listed:
  # egress:                      # every entry opens one host; ports 80 and 443 unless one is written
  #   - api.example.com
  #   - "*.example.org"
  #   - db.example.com:5432
"""

_PLAIN = '''\
"""{name}: an agent in plain Python."""

from nexus.ai.agents import Agent


class MyAgent(Agent):
    async def process(self, input: str):
        self.state["turns"] = self.state.get("turns", 0) + 1
        return await self.llm.generate(input)


agent = MyAgent()
'''

_LANGGRAPH = '''\
"""{name}: a LangGraph agent. The host provides the model (OPENAI_BASE_URL and OPENAI_API_KEY are set)."""

import os

from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph

model = ChatOpenAI(model=os.environ.get("NEXUS_MODEL", "default"))


async def answer(state: MessagesState) -> dict:
    return {{"messages": [await model.ainvoke(state["messages"])]}}


builder = StateGraph(MessagesState)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
builder.add_edge("answer", END)
graph = builder.compile()
'''

_EMPTY = '''\
"""{name}: the smallest agent there is, a function from an input to an output."""


def agent(input):
    return input
'''

_README = """\
# {name}

```bash
nexus ai agent dev                          # run it here, with hot reload
nexus ai agent deploy --env development     # deploy it to a host (nexus up)
nexus ai agent run {name} "Hello"
```
"""

_IGNORED = ".nexus/\n.venv/\n__pycache__/\n.env\n"


def _files(code: str, attribute: str, requirements: str | None) -> Callable[[str], Mapping[str, str]]:
    def render(name: str) -> Mapping[str, str]:
        files = {
            "config.yaml": _CONFIG.format(name=name, attribute=attribute),
            "agent.py": code.format(name=name),
            "README.md": _README.format(name=name),
            ".gitignore": _IGNORED,
        }
        if requirements is not None:
            files["requirements.txt"] = requirements
        return files

    return render


def _framework(template: framework_templates.FrameworkTemplate) -> Callable[[str], Mapping[str, str]]:
    def render(name: str) -> Mapping[str, str]:
        config = _CONFIG.format(name=name, attribute=template.attribute).replace("512Mi", template.memory)
        return {
            "config.yaml": config + "  start_timeout: 180s\n",
            "agent.py": template.code.replace("{name}", name),
            "README.md": _README.format(name=name),
            "requirements.txt": template.requirements,
            ".gitignore": _IGNORED,
        }

    return render


TEMPLATES: Mapping[str, Callable[[str], Mapping[str, str]]] = {
    "plain": _files(_PLAIN, "agent", None),
    "langgraph": _files(_LANGGRAPH, "graph", "langchain-openai>=1.0\nlanggraph>=1.0\n"),
    **{name: _framework(template) for name, template in framework_templates.FRAMEWORKS.items()},
    "empty": _files(_EMPTY, "agent", None),
}
