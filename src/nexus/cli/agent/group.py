"""The tables of `nexus ai` and `nexus ai agent`."""

from collections.abc import Mapping
from typing import ClassVar

import typer

from nexus.cli.lazy import Entry, LazyGroup


class AgentGroup(LazyGroup):
    table: ClassVar[Mapping[str, Entry]] = {
        "init": Entry("nexus.cli.agent.authoring", "Make a new agent project.", "Write"),
        "validate": Entry("nexus.cli.agent.authoring", "Check an agent project's config.yaml.", "Write"),
        "schema": Entry("nexus.cli.agent.authoring", "Print the JSON Schema of config.yaml.", "Write"),
        "dev": Entry("nexus.cli.agent.dev", "Run one agent here, with hot reload and without a host.", "Write"),
        "deploy": Entry("nexus.cli.agent.deploy", "Deploy an agent and watch it start.", "Deploy"),
        "list": Entry("nexus.cli.agent.seeing", "List agents and where they are deployed.", "Deploy"),
        "show": Entry("nexus.cli.agent.seeing", "Show an agent, its deployments and instances.", "Deploy"),
        "history": Entry("nexus.cli.agent.seeing", "Show the revisions of an agent's deployments.", "Deploy"),
        "rollback": Entry("nexus.cli.agent.changing", "Go back to the version before, or to a named one.", "Deploy"),
        "promote": Entry("nexus.cli.agent.rollout_commands", "Promote the new version of a rollout.", "Deploy"),
        "abort": Entry("nexus.cli.agent.rollout_commands", "Give a rollout up, or switch back.", "Deploy"),
        "rollout": Entry("nexus.cli.agent.rollout_commands", "Watch a rollout, compare its versions.", "Deploy"),
        "scale": Entry("nexus.cli.agent.changing", "Change how many instances there are.", "Deploy"),
        "delete": Entry("nexus.cli.agent.changing", "Remove an agent, or its deployment in one environment.", "Deploy"),
        "secret": Entry("nexus.cli.agent.secret", "Set, list and delete secrets.", "Deploy"),
        "run": Entry("nexus.cli.agent.running", "Run an agent and print its answer.", "Run"),
        "stream": Entry("nexus.cli.agent.running", "Run an agent and print its answer as it is made.", "Run"),
        "chat": Entry("nexus.cli.agent.chat", "Talk with an agent in one session.", "Run"),
        "submit": Entry("nexus.cli.agent.task", "Hand over a task and return at once.", "Run"),
        "task": Entry("nexus.cli.agent.task", "Look after tasks: status, result, cancel, pause, requeue …", "Run"),
        "sessions": Entry("nexus.cli.agent.sessions", "Look after sessions: list, show, stop, kill, logs, exec.", "Run"),
        "logs": Entry("nexus.cli.agent.logs", "Show what an agent wrote.", "See"),
        "metrics": Entry("nexus.cli.agent.metrics", "Show an agent's metrics.", "See"),
        "runs": Entry("nexus.cli.agent.seeing", "List finished runs.", "See"),
    }


def register(app: typer.Typer) -> None:
    ai = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Agents and what they need.")
    ai.callback()(_ai)
    agent = typer.Typer(cls=AgentGroup, rich_markup_mode=None, no_args_is_help=True)
    agent.callback()(_agent)
    ai.add_typer(agent, name="agent")
    app.add_typer(ai, name="ai")


def _ai() -> None:
    """Agents and what they need."""


def _agent() -> None:
    """Write, deploy, run and watch agents."""
