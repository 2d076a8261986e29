"""A LangGraph agent as anybody would write it: it reads a text, notes its key facts, then answers from them.

The model comes from OPENAI_BASE_URL and OPENAI_API_KEY, which the host sets to its own models door.
"""

import os
from typing import Annotated

from langchain_core.messages import AnyMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from typing_extensions import TypedDict


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    facts: str


model = ChatOpenAI(model=os.environ.get("NEXUS_MODEL", "default"), max_tokens=200, temperature=0, stream_usage=True)


async def note_facts(state: State) -> dict:
    question = SystemMessage("List the key facts of the user's message, one on a line, and nothing else.")
    answer = await model.ainvoke([question, state["messages"][-1]], config={"tags": ["nostream"]})
    return {"facts": answer.text}


async def answer(state: State) -> dict:
    told = SystemMessage(f"Answer briefly and use these facts:\n{state['facts']}")
    return {"messages": [await model.ainvoke([told, *state["messages"]])]}


builder = StateGraph(State)
builder.add_node("note_facts", note_facts)
builder.add_node("answer", answer)
builder.add_edge(START, "note_facts")
builder.add_edge("note_facts", "answer")
builder.add_edge("answer", END)
graph = builder.compile()
