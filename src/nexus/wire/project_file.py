"""Reads `config.yaml`: text to `ProjectConfig`, every error with file, line, column, what was expected and the nearest name.

Called by the CLI before it uploads and by control when it receives a package. The text may come from a stranger: no tags, no
anchors, bounded size, depth and number of values. Positions come from the YAML events, so they are exact.
"""

import difflib
import json
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
import ruamel.yaml
from ruamel.yaml import error as yaml_error

from nexus.core import errors
from nexus.wire import project, yaml_tree

MAX_BYTES = 256 * 1024
_MOST_ERRORS = 50
_TEXT_KEYS = frozenset({("name",), ("version",), ("description",), ("hosting", "python")})
_EXPECTED = {
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "finite_number": "expected a finite number",
    "string_type": "expected text",
    "list_type": "expected a list",
    "dict_type": "expected keys with values",
    "model_type": "expected a section with keys",
    "model_attributes_type": "expected a section with keys",
    "missing": "is required",
}
SCHEMA_ID = "urn:nexus:schema:config"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One thing wrong in a project file. `line` and `column` count from 1; `path` is dotted (`hosting.replicas.min`)."""

    line: int
    column: int
    path: str
    message: str
    nearest: str | None = None

    def render(self, filename: str) -> str:
        where = f"{filename}:{self.line}:{self.column}: "
        return where + (f"{self.path}: {self.message}" if self.path else self.message)


def parse_project(text: str, filename: str = "config.yaml") -> project.ProjectConfig:
    """The project, or `Invalid` (code `config.invalid`) whose message has one line per mistake, in the order of the file.

    The error's `extra["errors"]` lists them as `{file, line, column, path, message, nearest}`.
    """
    tree = _read(text, filename)
    try:
        return project.ProjectConfig.model_validate(yaml_tree.to_data(tree, _is_text))
    except pydantic.ValidationError as error:
        found = sorted(
            (_locate(detail, tree) for detail in error.errors(include_url=False)), key=lambda one: (one.line, one.column)
        )
        raise _refuse(found, filename) from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `config.yaml` for editors, published at docs/reference/config.schema.json."""
    schema = project.ProjectConfig.model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **schema,
        "title": "Nexus agent project (config.yaml)",
    }


def render_schema() -> str:
    return json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"


def _is_text(path: tuple[str, ...]) -> bool:
    """Where `1.10` must stay the text `1.10` instead of becoming the number 1.1."""
    return path in _TEXT_KEYS or (len(path) == 3 and path[:2] == ("hosting", "env"))


def _read(text: str, filename: str) -> yaml_tree.Mapping:
    text = text.removeprefix("\ufeff")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _refuse([Mistake(line=1, column=1, path="", message=f"the file is larger than {MAX_BYTES // 1024} KiB")], filename)
    try:
        tree = yaml_tree.build(ruamel.yaml.YAML(typ="safe", pure=True).parse(text))
    except yaml_tree.Refused as refused:
        found = [Mistake(line=e.line, column=e.column, path=e.path, message=e.message) for e in refused.found]
        raise _refuse(found, filename) from None
    except yaml_error.YAMLError as error:
        raise _refuse([_syntax(error, text)], filename) from None
    except (ValueError, RecursionError) as error:
        raise _refuse([Mistake(line=1, column=1, path="", message=f"the file is not YAML: {error}")], filename) from None
    if tree is None:
        raise _refuse([Mistake(line=1, column=1, path="", message="the file is empty; it needs at least a name")], filename)
    if not isinstance(tree, yaml_tree.Mapping):
        message = "expected keys with values, such as name: my-agent"
        raise _refuse([Mistake(line=tree.line, column=tree.column, path="", message=message)], filename)
    return tree


def _syntax(error: yaml_error.YAMLError, text: str) -> Mistake:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or getattr(error, "context", None) or "it cannot be read")
    if mark is not None:
        return Mistake(line=mark.line + 1, column=mark.column + 1, path="", message=f"syntax error: {problem}")
    at = getattr(error, "position", 0)
    before = text[: at if isinstance(at, int) else 0]
    letter = getattr(error, "character", None)
    named = f"the character U+{letter:04X} is not allowed" if isinstance(letter, int) else "a character is not allowed"
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    return Mistake(line=line, column=column, path="", message=f"syntax error: {named}")


def _refuse(found: Sequence[Mistake], filename: str) -> errors.Invalid:
    shown = list(found[:_MOST_ERRORS])
    lines = [mistake.render(filename) for mistake in shown]
    if len(found) > len(shown):
        lines.append(f"{filename}: and {len(found) - len(shown)} more")
    return errors.Invalid(
        "\n".join(lines),
        code="config.invalid",
        phase="config",
        next_step=f"correct {filename}; `nexus ai agent schema` prints what it may hold",
        extra={
            "errors": [
                {
                    "file": filename,
                    "line": one.line,
                    "column": one.column,
                    "path": one.path,
                    "message": one.message,
                    "nearest": one.nearest,
                }
                for one in shown
            ]
        },
    )


def _locate(detail: Any, tree: yaml_tree.Mapping) -> Mistake:
    """Where in the file one finding of pydantic is, and in which words it is told."""
    kind, context = detail["type"], detail.get("ctx", {})
    loc = tuple(detail["loc"]) + tuple(int(part) if part.isdigit() else part for part in context.get("path", ()))
    path = ".".join(str(part) for part in loc)
    if kind == "extra_forbidden":
        line, column = yaml_tree.position_of_key(tree, loc)
        nearest = _nearest(loc)
        hint = f"; did you mean {nearest}?" if nearest else f"; expected one of {', '.join(_keys_at(loc[:-1]))}"
        return Mistake(line=line, column=column, path=path, message=f"unknown key {str(loc[-1])!r}{hint}", nearest=nearest)
    line, column = yaml_tree.position_of_value(tree, loc)
    nearest = None
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in str(context["expected"]).replace(" or ", ", ").split(", ")]
        close = difflib.get_close_matches(str(detail["input"]), choices, n=1)
        nearest = close[0] if close else None
        message = f"expected {' or '.join(choices)}" + (f"; did you mean {nearest}?" if nearest else "")
    else:
        message = _words(kind, detail["msg"], context)
    return Mistake(line=line, column=column, path=path, message=message, nearest=nearest)


_LIMITS = {
    "greater_than": ("expected more than {}", "gt"),
    "greater_than_equal": ("expected at least {}", "ge"),
    "less_than": ("expected less than {}", "lt"),
    "less_than_equal": ("expected at most {}", "le"),
    "string_too_long": ("expected at most {} characters", "max_length"),
    "too_long": ("expected at most {} entries", "max_length"),
    "string_pattern_mismatch": ("expected text of the form {}", "pattern"),
}


def _words(kind: str, message: str, context: typing.Mapping[str, Any]) -> str:
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in _LIMITS:
        words, name = _LIMITS[kind]
        limit = context.get(name)
        return words.format(f"{limit:.12g}" if isinstance(limit, float) else limit)
    return message.removeprefix("Value error, ")


def _model_at(loc: Sequence[object]) -> type[pydantic.BaseModel] | None:
    model: type[pydantic.BaseModel] | None = project.ProjectConfig
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part)) if model else None
        model = _model_in(field.annotation) if field else None
    return model


def _model_in(annotation: object) -> type[pydantic.BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    return next((found for inner in typing.get_args(annotation) if (found := _model_in(inner))), None)


def _keys_at(loc: Sequence[object]) -> list[str]:
    model = _model_at(loc)
    return list(model.model_fields) if model else []


def _nearest(loc: Sequence[object]) -> str | None:
    """The valid key closest to an unknown one: in its own section first, then the same name anywhere else."""
    key = str(loc[-1])
    close = difflib.get_close_matches(key, _keys_at(loc[:-1]), n=1, cutoff=0.6)
    if close:
        return close[0]
    everywhere = dict(reversed(list(_all_paths(project.ProjectConfig, ()))))
    if key in everywhere:
        return everywhere[key]
    close = difflib.get_close_matches(key, list(everywhere), n=1, cutoff=0.8)
    return everywhere[close[0]] if close else None


def _all_paths(model: type[pydantic.BaseModel], above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        yield name, ".".join((*above, name))
        if inner := _model_in(field.annotation):
            yield from _all_paths(inner, (*above, name))
