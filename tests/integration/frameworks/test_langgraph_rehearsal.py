"""A worker runs LangGraph before anybody asks: the framework's own machinery to its end, the author's nodes never, and what it
leaves can still be forked."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.frameworks.conftest import EXAMPLES, FOLDERS, asked

pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(300, func_only=True),
    pytest.mark.skipif(not asked("langgraph"), reason="make frameworks"),
]  # fmt: skip

AGENT = """
from typing import Any, TypedDict
from langgraph.graph import END, START, MessagesState, StateGraph

class State(TypedDict, total=False):
    text: Any

def node(state):
    with open("called", "a") as file:
        file.write("x")
    return {}

async def waiting(state):
    return node(state)

def build(state, node):
    builder = StateGraph(state)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    builder.add_edge("node", END)
    return builder.compile()

plain, talking = build(State, node), build(MessagesState, waiting)
"""
PROGRAM = """
import json, os, sys
copy = sys.argv[1]
sys.path[:] = [copy + "/lib", *sys.path[1:], copy + "/site"]
from nexus.worker import logs, session_forkable, session_import, session_warm, settings

config = settings.parse_settings(os.environ)
capture = logs.install("WARNING")
own = []
imported = session_import.load(config, capture, isolated=False, before=lambda: own.extend(session_forkable.descriptors()))
ended = []

class Counted:
    name, uses_state = "counted", False

    async def run(self, run):
        kept = []
        run.door.call, call = lambda *asked, **more: kept.append(asked[0]) or call(*asked, **more), run.door.call
        value = await imported.stand_in.run(run)
        run.door.call = call
        ended.append(kept)
        return value

imported.held.close()
reason = session_forkable.find_reason(own=own)
if imported.stand_in is not None:
    session_warm.rehearse(config, capture, Counted(), times=2)
called = os.path.exists("called")
told = {"stand_in": imported.stand_in is not None, "ended": ended, "reason": reason, "called": called}
sys.__stdout__.flush()
os.write(3, json.dumps(told).encode())
"""


@pytest.mark.parametrize("entrypoint", ["agent:plain", "agent:talking"])
async def test_a_graph_of_nobodys_runs_and_the_authors_does_not(
    build: Callable, copy: Path, tmp_path: Path, entrypoint: str
) -> None:
    python = await build(EXAMPLES / FOLDERS["langgraph"])
    told = rehearse(python, copy, tmp_path, entrypoint)
    assert told == {"stand_in": True, "ended": [["GET", "PUT"]] * 4, "reason": None, "called": False}


async def test_nobody_who_watches_runs_hears_of_one_that_nobody_asked_for(build: Callable, copy: Path, tmp_path: Path) -> None:
    python = await build(EXAMPLES / FOLDERS["langgraph"])
    assert not rehearse(python, copy, tmp_path, "agent:plain", LANGSMITH_TRACING="true")["stand_in"]


def rehearse(python: Path, copy: Path, folder: Path, entrypoint: str, **environ: str) -> dict:
    (folder / "agent.py").write_text(AGENT)
    ours, theirs = os.pipe()
    names = {"NEXUS_SOURCE": str(folder), "NEXUS_ENTRYPOINT": entrypoint, "NEXUS_DOOR": str(folder / "none"), "NEXUS_TOKEN": "t"}
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": "/tmp", **names, **environ}
    program = f"import os; os.dup2({theirs}, 3)\n{PROGRAM}"
    done = subprocess.run(
        [python, "-P", "-c", program, copy], env=env, pass_fds=[theirs], capture_output=True, timeout=120, check=False
    )
    os.close(theirs)
    with os.fdopen(ours) as said:
        text = said.read()
    assert text, done.stderr.decode()[-2000:]
    return json.loads(text)
