"""An HTTP library's command line is not imported with it, and works all the same when it is called."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from nexus.worker import light
light.put_off()
light.put_off()
import httpx
assert "click" not in sys.modules and not hasattr(sys.modules["httpx._main"], "heavy")
assert httpx.main("a", flag=True) == (("a",), {"flag": True})
assert sys.modules["httpx._main"].heavy
assert httpx.main() == ((), {})
"""


def test_put_off(tmp_path: Path) -> None:
    package = tmp_path / "httpx"
    package.mkdir()
    (package / "__init__.py").write_text("from ._main import main\n")
    (package / "_main.py").write_text("heavy = True\ndef main(*arguments, **options):\n    return arguments, options\n")
    path = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parents[3] / 'src')!r}]\n"
    subprocess.run([sys.executable, "-c", path + PROGRAM], check=True)
