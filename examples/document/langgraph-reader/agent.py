"""Answers questions about a document: a LangGraph graph of two steps, find the passage and ask the model about it.

The host puts the caller's `context` into the graph's `configurable`, so the document arrives there. The model is the host's:
OPENAI_BASE_URL and OPENAI_API_KEY are set in the box.
"""

import os
import re
from collections import Counter

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph

model = ChatOpenAI(model=os.environ.get("NEXUS_MODEL", "default"), temperature=0, max_tokens=80)


class Reading(MessagesState):
    passage: str


def find(state: Reading, config: RunnableConfig) -> dict:
    """The sentence with most of the question's rare words, and the one after it."""
    document = config["configurable"].get("document")
    if not document:
        raise ValueError('there is no document: send it as {"context": {"document": "..."}}')
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(document.split()))
    frequency = Counter(word for sentence in sentences for word in words(sentence))
    asked = words(state["messages"][-1].text)
    best = max(range(len(sentences)), key=lambda at: sum(1 / frequency[word] for word in asked & words(sentences[at])))
    return {"passage": " ".join(sentences[best : best + 2])}


async def answer(state: Reading) -> dict:
    question = state["messages"][-1].text
    prompt = f"{state['passage']}\n\nAnswer in one short sentence, using only the text above. {question}"
    return {"messages": [await model.ainvoke([HumanMessage(prompt)])]}


def words(text: str) -> set[str]:
    return {word[:6] for word in re.findall(r"\w+", text.lower()) if len(word) > 3}


builder = StateGraph(Reading)
builder.add_node("find", find)
builder.add_node("answer", answer)
builder.add_edge(START, "find")
builder.add_edge("find", "answer")
builder.add_edge("answer", END)
graph = builder.compile()
