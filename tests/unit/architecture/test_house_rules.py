"""The house rules a machine can keep: file sizes, names, layout, and documents that say what the source says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "src" / "nexus"
MODULES = sorted(SOURCE.rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "changes").glob("*.md")])
BANNED = {"helper", "helpers", "util", "utils", "common", "misc", "impl", "base", "manager"}
LONGEST = 500


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_is_one_idea_of_bounded_size_and_says_which(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= LONGEST
    if text.strip() and "versions" not in path.parts:
        assert ast.get_docstring(ast.parse(text)), "a module says its idea in its docstring"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_name_says_nothing(path):
    words = {word for part in path.relative_to(SOURCE).with_suffix("").parts for word in part.split("_")}
    assert not words & BANNED
    classes = [node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ClassDef)]
    words = {word.lower() for name in classes for word in re.findall(r"[A-Z][a-z]+", name)}
    assert not words & (BANNED - {"base"})  # pydantic's BaseModel is not ours to name


def test_the_environment_is_read_in_the_composition_roots_only():
    allowed = ("apps", "cli", "worker", "client", "ai", "providers", "models")
    readers = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and getattr(node.value, "id", "") == "os":
                room = path.relative_to(SOURCE).parts[0]
                if room not in allowed:
                    readers.append(f"{name_of(path)}:{node.lineno}")
    # Handing the whole environment on to a program that is started (PATH, proxies) is not reading a setting.
    reviewed = {"src/nexus/drivers", "src/nexus/testing", "src/nexus/wire/archive.py"}
    assert [entry for entry in readers if not entry.startswith(tuple(reviewed))] == []


def test_nothing_pickles_and_nothing_starts_a_shell():
    for path in MODULES:
        text = path.read_text("utf-8")
        assert not re.search(r"^\s*(import|from) (pickle|marshal|shelve)\b", text, re.MULTILINE), name_of(path)
        assert "shell=True" not in text, name_of(path)
        assert not re.search(r"\bos\.system\(", text), name_of(path)


def test_the_lock_names_every_file_by_hash_and_no_host():
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    body = [line for line in lines if not line.startswith("#")]
    assert not [line for line in body if "://" in line or line.startswith("-")]
    for number, line in enumerate(body):
        if re.match(r"^[a-z0-9]", line):
            assert "--hash=sha256:" in body[number + 1], line


def test_the_lock_covers_what_the_project_asks_for():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["server"], *extras["offline"], *project["dependency-groups"]["dev"]]
    names = {re.split(r"[\[>=<~! ;]", entry)[0].lower().replace("_", "-").replace(".", "-") for entry in wanted}
    locked = {
        line.split("==")[0].split("[")[0] for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines() if "==" in line
    }
    assert names - locked == set(), "run make lock"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_internal_link_of_the_documents_leads_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        if not found.exists() or (anchor and found.suffix == ".md" and anchor not in anchors(found)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_python_and_yaml_in_the_documents_can_be_read(path):
    from ruamel.yaml import YAML

    text = path.read_text("utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        ast.parse(block)
    for block in re.findall(r"```ya?ml\n(.*?)```", text, re.DOTALL):
        assert YAML(typ="safe").load(block)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as a forge makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_setting_of_the_environment_is_documented():
    text = (ROOT / "docs" / "reference" / "settings.md").read_text("utf-8")
    documented = set(re.findall(r"`(NEXUS_[A-Z_]+)`", text))
    used = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and re.fullmatch(r"NEXUS_[A-Z][A-Z_]*[A-Z]", node.value)
            ):
                used.add(node.value)
    assert used - documented == set(), "describe these in docs/reference/settings.md"
    assert documented - used == set(), "these are described and not used any more"


def test_the_generated_pages_are_what_the_source_makes():
    import runpy

    pages = runpy.run_path(str(ROOT / "scripts" / "reference.py"))["pages"]()
    for path, text in pages.items():
        assert path.read_text("utf-8") == text, f"{name_of(path)} is stale: run make docs"


def test_every_command_in_the_documents_exists():
    import runpy

    import typer.main

    from nexus.cli import main

    root = typer.main.get_command(main.app)
    load = runpy.run_path(str(ROOT / "scripts" / "reference.py"))["load_command"]
    unknown = []
    for path in DOCUMENTS:
        for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", path.read_text("utf-8"), re.DOTALL):
            for line in block.splitlines():
                match = re.match(r"\s*\$?\s*(?:\.venv/bin/)?nexus ([a-z].*)", line)
                if match and not resolves(root, match[1].split(), load):
                    unknown.append(f"{name_of(path)}: nexus {match[1]}")
    assert unknown == []


def resolves(command, words, load) -> bool:
    """Whether the leading words name a command, and every option it is given exists."""
    words = list(words)
    while hasattr(command, "get_command") and words and not words[0].startswith("-"):
        inner = load(command, words[0])
        if inner is None:
            return False
        command = inner
        words.pop(0)
    if hasattr(command, "list_commands") and not words:
        return False
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    return all(word.split("=")[0] in known for word in words if re.fullmatch(r"--[a-z-]+(=.*)?", word))
