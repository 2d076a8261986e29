"""Finding an agent's project folder from what was typed, and reading its config.yaml."""

import re
from dataclasses import dataclass
from pathlib import Path

from nexus.core import errors, names
from nexus.wire import project as project_model
from nexus.wire import project_file

CONFIG = "config.yaml"
_NAME = re.compile(r"""^name:[ \t]*["']?([^"'#\s]+)""", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    folder: Path
    config: project_model.ProjectConfig
    text: str


def find(agent: str | None, path: Path | None, here: Path) -> Project | None:
    """The project meant by a name, a path or the current folder; None when a name has no folder here.

    Raises `Invalid` when there is a folder and its config.yaml is missing, wrong or for another agent.
    """
    if path is not None:
        return _named(read(path), agent)
    if agent is None:
        return read(here)
    if "/" in agent or agent in (".", ".."):
        return read(here / agent)
    written = _glance(here / CONFIG)
    if written == agent:
        return read(here)
    if (here / agent / CONFIG).is_file() and names.is_label(agent):
        return _named(read(here / agent), agent)
    if written == "":
        return _named(read(here), agent)
    names.parse_label(agent)
    return None


def read(folder: Path) -> Project:
    """The project in a folder (or whose config.yaml is given)."""
    folder = folder.parent if folder.name == CONFIG and folder.is_file() else folder
    file = folder / CONFIG
    if not file.is_file():
        raise errors.Invalid(
            f"there is no {CONFIG} in {folder}",
            code="project.not_found",
            next_step="go to the folder of an agent, name it with --path, or make one: nexus ai agent init my-agent",
        )
    if file.stat().st_size > project_file.MAX_BYTES:
        raise errors.Invalid(
            f"{file} is larger than {project_file.MAX_BYTES // 1024} KiB", code="config.invalid", next_step="make it smaller"
        )
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise errors.Invalid(
            f"{CONFIG}:{line}:1: the file is not UTF-8", code="config.invalid", phase="config", next_step="save it as UTF-8"
        ) from error
    return Project(folder=folder, config=project_file.parse_project(text, CONFIG), text=text)


def with_version(project: Project, version: str) -> Project:
    """The same project as if its config.yaml said `version: <version>`; everything else in the file stays as it is."""
    line = f'version: "{version}"'
    text, changed = re.subn(r"^version:.*$", lambda _: line, project.text, count=1, flags=re.MULTILINE)
    if not changed:
        text = re.sub(r"^name:.*$", lambda found: f"{found[0]}\n{line}", project.text, count=1, flags=re.MULTILINE)
    config = project_file.parse_project(text, CONFIG)
    if config.version != version:
        raise errors.Invalid(
            f"the version cannot be set to {version!r} in this {CONFIG}",
            code="config.invalid",
            next_step=f"write {line} into {CONFIG} yourself",
        )
    return Project(folder=project.folder, config=config, text=text)


def _named(project: Project, agent: str | None) -> Project:
    if agent is None or agent == project.config.name:
        return project
    raise errors.Invalid(
        f"{project.folder / CONFIG} is of agent {project.config.name!r}, not {agent!r}",
        code="project.other_agent",
        next_step=f"deploy {project.config.name}, or change name in {CONFIG}",
    )


def _glance(file: Path) -> str | None:
    """The name a config.yaml seems to have, without judging it: None without a file, empty without a legible name."""
    try:
        with file.open("rb") as opened:
            found = _NAME.search(opened.read(project_file.MAX_BYTES).decode("utf-8", "replace"))
    except OSError:
        return None
    return found[1] if found else ""
