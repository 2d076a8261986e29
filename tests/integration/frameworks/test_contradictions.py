"""Two agents whose dependencies cannot live together: each has an environment of its own, and both run at once."""

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.frameworks.conftest import EXAMPLES, asked

from nexus.drivers.process import environments
from nexus.testing import fake_llm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120, func_only=True)]
OTHER = """
import openai

client = openai.AsyncOpenAI()

async def agent(input):
    answer = await client.chat.completions.create(model="default", messages=[{"role": "user", "content": input}])
    return [openai.__version__, answer.choices[0].message.content]
"""


@pytest.mark.parametrize(
    "name", [pytest.param("strands", marks=[] if asked("strands") else [pytest.mark.skip(reason="make frameworks")])]
)
async def test_agents_that_contradict_each_other_both_run(
    name: str, start: Callable[..., Any], build: Callable[..., Any], llm: fake_llm.FakeLlm, tmp_path: Path
) -> None:
    (tmp_path / "requirements.txt").write_text("openai>=3\n")
    both = tmp_path / "both.txt"
    both.write_text("openai>=3\n" + (EXAMPLES / name / "requirements.txt").read_text())
    uv = environments.find_uv() or "uv"
    resolved = subprocess.run([uv, "pip", "compile", "-q", str(both)], capture_output=True, check=False)
    assert b"No solution found" in resolved.stderr
    llm.turn(reply="Both are here.")
    one = await start(name)
    other = await start(tmp_path, files={"agent.py": OTHER})
    answers = await asyncio.gather(one.run("hello"), other.run("hello"))
    assert answers[0].output == "Both are here."
    version, said = answers[1].output
    assert (int(version.partition(".")[0]) >= 3, said) == (True, "Both are here.")
