"""Turns the JSON answer of `nexus ai agent deploy` into a step's outputs, summary and annotations. Standard library only.

Every value comes from a server, so none may begin a line of its own: that is how a workflow command is smuggled in.
"""

import json
import os
import re
import sys
from typing import Any

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def line(value: object, most: int = 500) -> str:
    return CONTROL.sub(" ", "" if value is None else str(value))[:most]


def escape(value: object) -> str:
    """For the message of a workflow command."""
    return line(value).replace("%", "%25")


def cell(value: object) -> str:
    """For a Markdown table."""
    text = line(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#!])", r"\\\1", text) or "-"


def outputs(answer: dict[str, Any]) -> list[str]:
    named = {"url": "url", "version": "version", "deployment": "id"}
    return [f"{name}={line(answer.get(field))}" for name, field in named.items()]


def summary(answer: dict[str, Any]) -> list[str]:
    if (error := answer.get("error")) is not None:
        rows = [(name, error.get(name)) for name in ("detail", "phase", "cause", "next_step", "code")]
        title = "### Deployment failed"
    else:
        rows = [(name, answer.get(name)) for name in ("agent", "version", "environment", "phase", "url")]
        rows.append(("ready", f"{answer.get('ready')} of {answer.get('replicas')}"))
        title = "### Deployed"
    return [title, "", "| | |", "|---|---|", *(f"| {name} | {cell(value)} |" for name, value in rows if value), ""]


def annotations(answer: dict[str, Any]) -> list[str]:
    error = answer.get("error")
    if error is None:
        return [f"deployed {line(answer.get('agent'))} {line(answer.get('version'))}: {line(answer.get('url'))}"]
    told = []
    for mistake in error.get("errors") or ():
        where = f"file={escape(mistake.get('file'))},line={int(mistake.get('line', 1))},col={int(mistake.get('column', 1))}"
        told.append(f"::error {where.replace(':', '%3A')}::{escape(mistake.get('path'))}: {escape(mistake.get('message'))}")
    words = " ".join(escape(error.get(name)) for name in ("detail", "cause", "next_step") if error.get(name))
    told.append(f"::error title=Nexus::{words}")
    told += [f"  log: {line(text)}" for text in list(error.get("log_tail") or ())[-20:]]
    return told


def append(variable: str, lines: list[str]) -> None:
    if path := os.environ.get(variable):
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(text + "\n" for text in lines))


def main(path: str) -> None:
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    try:
        answer = json.loads(text)
        assert isinstance(answer, dict)
    except (ValueError, AssertionError):
        answer = {"error": {"detail": "the nexus command gave no answer", "cause": line(text)}}
    if "error" not in answer:
        append("GITHUB_OUTPUT", outputs(answer))
    append("GITHUB_STEP_SUMMARY", summary(answer))
    print("\n".join(annotations(answer)))  # noqa: T201 - the workflow's log


if __name__ == "__main__":
    main(sys.argv[1])
