"""`nexus ai agent task asks` and `answer`: what tasks ask people."""

import json
from typing import Annotated, Any

import typer

from nexus.cli import connect, screen
from nexus.cli.options import Json
from nexus.core import errors

TaskId = Annotated[str, typer.Argument(help="Id of the task (task_…).", show_default=False)]


def register(task: typer.Typer) -> None:
    task.command("asks")(asks)
    task.command("answer")(answer)


def asks(
    task_id: Annotated[str | None, typer.Argument(help="All that this task asked (task_…), not just what is open.")] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="Only this agent's.")] = None,
    as_json: Json = False,
) -> None:
    """List what tasks ask people, oldest first, with the link to answer."""
    with connect.open_client() as host:
        found = host.agents.asks(agent, task_id=task_id)
    if as_json:
        screen.write_json(found)
        return
    if not found:
        screen.note("nobody is asked anything")
    for each in found:
        screen.write(f"{each['task_id']}  {each['agent']}  {each['status']}  {screen.ago(each.get('opened_at'))}")
        screen.write(f"  {each['question']}")
        if each.get("choices"):
            screen.write("  choices: " + ", ".join(json.dumps(choice, ensure_ascii=False) for choice in each["choices"]))
        if each["status"] == "answered":
            screen.write("  answer: " + json.dumps(each.get("answer"), ensure_ascii=False) + f" ({each.get('answered_by')})")
        if each.get("url"):
            screen.write(f"  {each['url']}")


def answer(
    task_id: TaskId,
    value: Annotated[str | None, typer.Argument(help="The answer as text, or as JSON where the question asks for it.")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="The answer as JSON.")] = None,
    ask_id: Annotated[str | None, typer.Option("--ask", help="Which question (ask_…), when there are several.")] = None,
    as_json: Json = False,
) -> None:
    """Answer a task's question; the task goes on."""
    if (value is None) == (data is None):
        raise errors.Invalid("give the answer, or --data with JSON", code="usage.invalid", next_step="nexus ai agent task asks")
    with connect.open_client() as host:
        if data is not None:
            chosen = _json(data)
        else:
            waiting = [each for each in host.agents.asks(task_id=task_id) if each["status"] == "open"]
            asked = next((each for each in waiting if ask_id in (None, each["ask_id"])), None)
            chosen = _meant(value or "", asked)
        settled = host.agents.answer(task_id, chosen, ask_id=ask_id)
    screen.give(settled, as_json=as_json, text=f"{task_id} goes on with {json.dumps(settled.get('answer'), ensure_ascii=False)}")


def _meant(text: str, asked: Any) -> Any:
    """What a word stands for: itself where text is an answer, else the JSON it spells."""
    choices, schema = (asked or {}).get("choices"), (asked or {}).get("answer_schema")
    takes_text = (schema is None or schema.get("type") == "string") if choices is None else text in choices
    if takes_text:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise errors.Invalid("--data is not JSON", code="input.invalid_json", cause=str(error)) from error
