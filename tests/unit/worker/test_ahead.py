"""What a library puts off until its first call is imported ahead, where the library is there and has it."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from nexus.worker import ahead
ahead.fetch()
assert "openai" not in sys.modules
import openai, litellm
ahead.fetch()
assert "openai.resources.chat" in sys.modules
"""


def test_fetch(tmp_path: Path) -> None:
    (tmp_path / "openai" / "resources").mkdir(parents=True)
    for name in ("openai/__init__.py", "openai/resources/__init__.py", "openai/resources/chat.py", "litellm.py"):
        (tmp_path / name).touch()
    path = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parents[3] / 'src')!r}]\n"
    subprocess.run([sys.executable, "-c", path + PROGRAM], check=True)
