"""`nexus ai agent init`, `validate` and `schema`: making and checking a project, without a host."""

import difflib
from pathlib import Path
from typing import Annotated

import typer

from nexus.cli import screen
from nexus.cli.agent import project, templates
from nexus.cli.options import Json
from nexus.core import errors, names
from nexus.wire import project_file


def register(app: typer.Typer) -> None:
    app.command("init")(init)
    app.command("validate")(validate)
    app.command("schema")(schema)


def init(
    name: Annotated[str, typer.Argument(help="Name of the agent, and of the folder unless --path says otherwise.")],
    template: Annotated[str, typer.Option("--template", "-t", help=f"One of {', '.join(templates.TEMPLATES)}.")] = "plain",
    path: Annotated[Path | None, typer.Option("--path", help="The folder to make; must be absent or empty.")] = None,
    as_json: Json = False,
) -> None:
    """Make a new agent project in a folder of its own."""
    names.parse_label(name)
    render = templates.TEMPLATES.get(template)
    if render is None:
        close = difflib.get_close_matches(template, list(templates.TEMPLATES), n=1)
        raise errors.Invalid(
            f"there is no template {template!r}" + (f"; did you mean {close[0]}?" if close else ""),
            code="template.unknown",
            next_step=f"use one of {', '.join(templates.TEMPLATES)}",
        )
    folder = path or Path(name)
    _make(folder)
    files = dict(render(name)) | {".nexus/config.schema.json": project_file.render_schema()}
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        with (folder / file).open("x", encoding="utf-8") as opened:
            opened.write(content)
    text = f"made {folder} from the template {template}\n\nnext:\n  cd {folder}\n  nexus ai agent dev"
    text += "\n  nexus ai agent deploy --env development"
    screen.give({"name": name, "folder": str(folder), "template": template, "files": sorted(files)}, as_json=as_json, text=text)


def _make(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise errors.Conflict(
            f"{folder} exists already and is not an empty folder",
            code="project.exists",
            next_step="choose another name, or another folder with --path",
        )
    folder.mkdir(parents=True, exist_ok=True)


def validate(
    path: Annotated[Path, typer.Argument(help="The agent's folder, or its config.yaml.")] = Path(),
    as_json: Json = False,
) -> None:
    """Check an agent project's config.yaml; every mistake is shown with its line and column."""
    found = project.read(path)
    config = found.config
    told = {"valid": True, "name": config.name, "version": config.version, "config": config.model_dump(mode="json")}
    version = f" {config.version}" if config.version else ""
    screen.give(told, as_json=as_json, text=f"{found.folder / project.CONFIG} is valid: {config.name}{version}")


def schema(as_json: Json = False) -> None:
    """Print the JSON Schema of config.yaml, for editors."""
    typer.echo(project_file.render_schema(), nl=False)
