"""Write the generated reference pages: error codes from the source, commands from the CLI. `--check` only compares.

Run by `make docs`; `tests/unit/architecture` compares the committed pages with what this makes.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "nexus"
REFERENCE = ROOT / "docs" / "reference"
_CODE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_KINDS = {
    "Invalid": "invalid",
    "Unauthenticated": "unauthenticated",
    "Forbidden": "forbidden",
    "NotFound": "not_found",
    "Conflict": "conflict",
    "Exhausted": "exhausted",
    "AgentFailed": "agent_failed",
    "Unavailable": "unavailable",
    "Internal": "internal",
}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Raised:
    """One place that names a code. `kind` is empty where the source does not tell."""

    code: str
    kind: str
    message: str
    module: str


def find_codes() -> list[Raised]:
    """Every error code named in the source, with the kind and message it is raised with where they stand together."""
    found: set[Raised] = set()
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                found.update(_of_call(node, module))
            elif isinstance(node, ast.Dict):
                found.update(_of_dict(node, module))
            elif isinstance(node, ast.ClassDef):
                found.update(_of_class(node, module))
    return sorted(found)


def render_errors(raised: list[Raised]) -> str:
    """docs/reference/errors.md."""
    sys.path.insert(0, str(ROOT / "src"))
    from nexus.apps import settings
    from nexus.core import errors
    from nexus.wire import problem

    lines = [
        "# Error codes",
        "",
        "Every error carries a stable `code` and, where known, its `phase`, `cause` and `next_step`. Over HTTP it is an",
        "`application/problem+json` document (RFC 9457), in Python an exception of `nexus.core.errors`, in a shell an exit code.",
        "This page is written by `make docs` from the source.",
        "",
        "## Kinds",
        "",
        "| kind | HTTP | exit code | exception | meaning |",
        "|---|---|---|---|---|",
    ]
    for kind, error in errors.KINDS.items():
        meaning = (error.__doc__ or "").strip().splitlines()[0]
        status = problem.status_of(error("x"))
        lines.append(f"| `{kind}` | {status} | {settings.EXIT_CODES[kind]} | `{error.__name__}` | {meaning} |")
    lines += ["", "## Codes", "", "| code | kind | HTTP | said when | from |", "|---|---|---|---|---|"]
    for code in sorted({entry.code for entry in raised}):
        places = [entry for entry in raised if entry.code == code]
        kinds = sorted({entry.kind for entry in places if entry.kind})
        statuses = sorted({str(problem.status_of(errors.KINDS[kind]("x", code=code))) for kind in kinds})
        messages = list(dict.fromkeys(entry.message for entry in places if entry.message))[:2]
        rooms = sorted({".".join(entry.module.split(".")[1:3]) for entry in places})
        lines.append(
            f"| `{code}` | {', '.join(kinds) or '-'} | {', '.join(statuses) or '-'} | "
            f"{'; '.join(messages).replace('|', chr(92) + '|') or '-'} | {', '.join(f'`{room}`' for room in rooms)} |"
        )
    return "\n".join(lines) + "\n"


def render_states(page: str) -> str:
    """The page with the picture of a task's states between its two marks, from the table of legal moves."""
    sys.path.insert(0, str(ROOT / "src"))
    from nexus.core import phases

    begin, end = "<!-- states: written by make docs from nexus.core.phases -->\n", "<!-- end of states -->"
    lines = ["```mermaid", "stateDiagram-v2", f"  [*] --> {phases.RunPhase.PENDING}"]
    for phase in phases.RunPhase:
        following = [each for each in phases.RunPhase if each in phases.RUN_MOVES[phase]]
        lines += [f"  {phase} --> {each}" for each in following] or [f"  {phase} --> [*]"]
    head, rest = page.split(begin)
    return "\n".join([head + begin + "\n".join(lines), "```", end + rest.split(end)[1]])


def render_commands() -> str:
    """docs/reference/cli.md, from the command tree itself."""
    sys.path.insert(0, str(ROOT / "src"))
    import typer.main

    from nexus.cli import main

    command = typer.main.get_command(main.app)
    lines = [
        "# Commands",
        "",
        "Every command has `--help`. Exit codes are those of [errors](errors.md); Ctrl-C is 130. Written by `make docs`.",
        "",
    ]
    for path, entry in _walk(command, ("nexus",)):
        if getattr(entry, "commands", None) is not None or getattr(entry, "hidden", False):
            continue
        arguments = [parameter for parameter in entry.params if parameter.param_type_name == "argument"]
        options = [parameter for parameter in entry.params if parameter.param_type_name == "option" and parameter.name != "help"]
        shown = " ".join([*path, *(_argument(parameter) for parameter in arguments)])
        lines += [f"## `{shown}`", "", _first_paragraph(entry.help or ""), ""]
        if options:
            lines += ["| option | meaning |", "|---|---|"]
            lines += [
                f"| {', '.join(f'`{name}`' for name in (*parameter.opts, *parameter.secondary_opts))} | "
                f"{' '.join((getattr(parameter, 'help', '') or '').split()).replace('|', chr(92) + '|')} |"
                for parameter in options
                if not getattr(parameter, "hidden", False)
            ]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def load_command(group: object, name: str) -> object | None:
    """The real command behind a name of a group that loads its members late; None when there is none such."""
    from nexus.cli import lazy

    table = getattr(group, "table", {})
    if name in table:
        return lazy.load(name, table[name])
    return group.get_command(None, name)  # type: ignore[attr-defined,no-any-return]


def _argument(parameter: object) -> str:
    name = str(getattr(parameter, "human_readable_name", "") or getattr(parameter, "name", "")).upper()
    return name if getattr(parameter, "required", True) else f"[{name}]"


def _walk(command: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    yield path, command
    names = command.list_commands(None) if hasattr(command, "list_commands") else []  # type: ignore[attr-defined]
    for name in names:
        inner = load_command(command, name)
        if inner is not None:
            yield from _walk(inner, (*path, name))


def _first_paragraph(text: str) -> str:
    return " ".join(text.replace("\b", "").split("\n\n")[0].split())


def _of_call(node: ast.Call, module: str) -> Iterator[Raised]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
    kind = _KINDS.get(name, "")
    message = _text(node.args[0]) if kind and node.args else ""
    for keyword in node.keywords:
        if keyword.arg in ("code", "default_code"):
            for code in _constants(keyword.value):
                yield Raised(code=code, kind=kind, message=message, module=module)


def _of_dict(node: ast.Dict, module: str) -> Iterator[Raised]:
    pairs = [(key.value, value) for key, value in zip(node.keys, node.values, strict=True) if isinstance(key, ast.Constant)]
    values = {str(key): value for key, value in pairs}
    if "code" in values and ("detail" in values or "title" in values or "kind" in values):
        kind = values.get("kind")
        known = str(kind.value) if isinstance(kind, ast.Constant) and kind.value in _KINDS.values() else ""
        detail = values.get("detail")
        for code in _constants(values["code"]):
            yield Raised(code=code, kind=known, message=_text(detail) if detail is not None else "", module=module)


def _of_class(node: ast.ClassDef, module: str) -> Iterator[Raised]:
    if module == "nexus.core.errors" and node.name in _KINDS:
        for statement in node.body:
            if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "default_code":
                for code in _constants(statement.value):
                    yield Raised(code=code, kind=_KINDS[node.name], message="", module=module)


def _constants(node: ast.expr) -> Iterator[str]:
    for entry in ast.walk(node):
        if isinstance(entry, ast.Constant) and isinstance(entry.value, str) and _CODE.fullmatch(entry.value):
            yield entry.value


def _text(node: ast.expr) -> str:
    """A message as it is written, with `…` where a value goes in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "…"


def pages() -> dict[Path, str]:
    """Every generated page with its text."""
    tasks = ROOT / "docs" / "explain" / "tasks.md"
    return {
        REFERENCE / "errors.md": render_errors(find_codes()),
        REFERENCE / "cli.md": render_commands(),
        tasks: render_states(tasks.read_text("utf-8")),
    }


def main() -> int:
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(ROOT)} is stale: run make docs\n")
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages()[path], "utf-8")
        sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
