"""YAML events as a small tree that remembers where everything stands. Only plain data gets in.

No tags, anchors, aliases or second documents, and bounded depth and size, so building it is safe and linear. Scalars follow the
YAML 1.2 core schema (https://yaml.org/spec/1.2.2/#103-core-schema): `on` and `yes` are text.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import events

MAX_DEPTH = 32
MAX_VALUES = 10_000
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,300}")
_OCT_HEX = re.compile(r"0o[0-7]{1,64}|0x[0-9a-fA-F]{1,64}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """A value as it was written; `plain` when unquoted, so that its type is to be told from its text."""

    text: str
    plain: bool
    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    items: list["Node"] = field(default_factory=list)
    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """`keys` holds where each key stands."""

    items: dict[str, "Node"] = field(default_factory=dict)
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    line: int
    column: int


Node = Scalar | Items | Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    line: int
    column: int
    path: str
    message: str


class Refused(Exception):
    """The YAML is well formed and holds what a project file may not."""

    def __init__(self, found: Sequence[Finding]) -> None:
        super().__init__(found[0].message)
        self.found = tuple(found)


@dataclass(slots=True)
class _Open:
    """A collection being read; `key` is the mapping key whose value comes next."""

    node: Items | Mapping
    path: Path
    key: str | None = None


def build(stream: Iterable[Any]) -> Node | None:
    """The tree of one document, or None when there is none. Raises `Refused`, and ruamel's YAMLError from the stream."""
    builder = _Builder()
    for event in stream:
        builder.take(event)
    if builder.found:
        raise Refused(builder.found)
    return builder.root


class _Builder:
    def __init__(self) -> None:
        self.root: Node | None = None
        self.found: list[Finding] = []
        self._open: list[_Open] = []
        self._values = 0
        self._documents = 0

    def take(self, event: Any) -> None:
        if isinstance(event, events.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._stop(event, "a project file is one YAML document; remove what follows '---'")
        elif isinstance(event, events.MappingEndEvent | events.SequenceEndEvent):
            self._open.pop()
        elif isinstance(event, events.NodeEvent):
            self._node(event)

    def _node(self, event: Any) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            self._stop(event, f"the file has more than {MAX_VALUES} values")
        if isinstance(event, events.AliasEvent) or event.anchor is not None:
            self._stop(event, "anchors and aliases (& and *) are not supported; write the value out")
        if event.tag not in (None, "!"):
            self._stop(event, f"tags such as {str(event.tag).replace('tag:yaml.org,2002:', '!!')[:60]} are not supported")
        if isinstance(event, events.ScalarEvent):
            self._scalar(event)
            return
        if len(self._open) >= MAX_DEPTH:
            self._open.clear()
            self._stop(event, f"nested deeper than {MAX_DEPTH} levels")
        line, column = _position(event)
        node = (
            Mapping(line=line, column=column) if isinstance(event, events.MappingStartEvent) else Items(line=line, column=column)
        )
        if self._open and isinstance(self._open[-1].node, Mapping) and self._open[-1].key is None:
            self._stop(event, "a key must be a plain name")
        path = self._here()
        self._put(node)
        self._open.append(_Open(node, path))

    def _scalar(self, event: Any) -> None:
        line, column = _position(event)
        above = self._open[-1] if self._open else None
        if above is not None and isinstance(above.node, Mapping) and above.key is None:
            if event.value in above.node.items:
                first = above.node.keys[event.value][0]
                path = ".".join((*above.path, event.value))
                message = f"the key is there twice; the first is on line {first}"
                self.found.append(Finding(line=line, column=column, path=path, message=message))
            else:
                above.node.keys[event.value] = (line, column)
            above.key = event.value
            return
        self._put(Scalar(text=event.value, plain=event.style in (None, ""), line=line, column=column))

    def _put(self, node: Node) -> None:
        if not self._open:
            self.root = node
            return
        above = self._open[-1]
        if isinstance(above.node, Items):
            above.node.items.append(node)
        else:
            above.node.items.setdefault(above.key or "", node)
            above.key = None

    def _here(self) -> Path:
        if not self._open:
            return ()
        above = self._open[-1]
        return (*above.path, str(len(above.node.items)) if isinstance(above.node, Items) else above.key or "")

    def _stop(self, event: Any, message: str) -> None:
        line, column = _position(event)
        self.found.append(Finding(line=line, column=column, path=".".join(self._here()), message=message))
        raise Refused(self.found)


def _position(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


def to_data(node: Node, is_text: Callable[[Path], bool], path: Path = ()) -> Any:
    """Plain dicts, lists and values. Where `is_text(path)` holds, an unquoted number or truth value stays as written."""
    if isinstance(node, Mapping):
        return {key: to_data(value, is_text, (*path, key)) for key, value in node.items.items()}
    if isinstance(node, Items):
        return [to_data(value, is_text, (*path, str(at))) for at, value in enumerate(node.items)]
    return _value(node, keep=is_text(path))


def _value(scalar: Scalar, *, keep: bool) -> Any:
    text = scalar.text
    if not scalar.plain:
        return text
    if _NULL.fullmatch(text):
        return None
    if keep:
        return text
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _OCT_HEX.fullmatch(text):
        return int(text[2:], 8 if text[1] == "o" else 16)
    if _FLOAT.fullmatch(text) or _INFINITE.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf").replace(".nan", "nan"))
    return text


def position_of_key(tree: Mapping, loc: Sequence[object]) -> tuple[int, int]:
    """Where the key at `loc` is written; the nearest place above it when it is not."""
    above = _follow(tree, loc[:-1])[0]
    if isinstance(above, Mapping) and str(loc[-1]) in above.keys:
        return above.keys[str(loc[-1])]
    return above.line, above.column


def position_of_value(tree: Mapping, loc: Sequence[object]) -> tuple[int, int]:
    """Where the value at `loc` begins; an absent or empty value is at its key, or at the key of its section."""
    node, key = _follow(tree, loc)
    if isinstance(node, Scalar) and (node.text or not node.plain):
        return node.line, node.column
    if isinstance(node, Items) or key is None:
        return node.line, node.column
    return key


def _follow(tree: Mapping, loc: Sequence[object]) -> tuple[Node, tuple[int, int] | None]:
    """The deepest node on the way to `loc`, with the position of its key."""
    node: Node = tree
    key: tuple[int, int] | None = None
    for part in loc:
        if isinstance(node, Mapping) and str(part) in node.items:
            key, node = node.keys[str(part)], node.items[str(part)]
        elif isinstance(node, Items) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
            key = (node.line, node.column)
        else:
            break
    return node, key
