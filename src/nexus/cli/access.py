"""`nexus keys …` and `nexus tenants …`."""

from typing import Annotated

import typer

from nexus.cli import connect, screen
from nexus.cli.options import Environment, Json
from nexus.core import errors
from nexus.kit import quantity


def register(app: typer.Typer) -> None:
    keys = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="API keys.")
    for name, command in (
        ("create", create_key), ("list", list_keys), ("revoke", revoke_key), ("rotate-master", rotate_master_key),
    ):  # fmt: skip
        keys.command(name)(command)
    app.add_typer(keys, name="keys")
    tenants = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Tenants.")
    tenants.command("create")(create_tenant)
    tenants.command("list")(list_tenants)
    app.add_typer(tenants, name="tenants")


def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")] = "",
    role: Annotated[
        list[str] | None, typer.Option("--role", "-r", help="admin, developer, runner or viewer; repeatable.")
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Tenant of the key; default: yours.")] = None,
    environment: Environment = None,
    agent: Annotated[list[str] | None, typer.Option("--agent", help="Only for this agent; repeatable.")] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="Valid for so long: 12h, 30d.")] = None,
    rate: Annotated[int | None, typer.Option("--requests-per-minute", min=1, help="At most so many requests a minute.")] = None,
    as_json: Json = False,
) -> None:
    """Create an API key. It is shown this once."""
    with connect.open_client() as host:
        view = host.keys.create(
            name,
            roles=role,
            tenant=tenant,
            environment=environment,
            agents=agent,
            expires_in_s=None if expires is None else _seconds(expires),
            requests_per_minute=rate,
        )
    screen.give(view, as_json=as_json, text=str(view.get("key")))
    if not as_json:
        screen.note(f"{view.get('id')}: keep the key now, it is not shown again")


def _seconds(value: str) -> float:
    try:
        seconds = quantity.parse_duration(value)
    except (ValueError, OverflowError) as error:
        raise errors.Invalid(f"--expires: {error}", code="duration.invalid", next_step="write 12h or 30d") from error
    if not 0 < seconds < 1e10:
        raise errors.Invalid(
            "--expires must be more than nothing and finite", code="duration.invalid", next_step="write 12h or 30d"
        )
    return seconds


def list_keys(as_json: Json = False) -> None:
    """List API keys; never the keys themselves."""
    with connect.open_client() as host:
        found = host.keys.list()
    if as_json:
        screen.write_json(found)
        return
    screen.table(
        ("KEY", "NAME", "TENANT", "ROLES", "ENVIRONMENT", "AGENTS", "CREATED", "EXPIRES", "REVOKED"),
        [
            (
                one.get("id"), one.get("name"), one.get("tenant"), ", ".join(one.get("roles") or ()), one.get("environment"),
                ", ".join(one.get("agents") or ()), screen.moment(one.get("created_at")), screen.moment(one.get("expires_at")),
                screen.moment(one.get("revoked_at")),
            )
            for one in found
        ],
        empty="no keys",
    )  # fmt: skip


def revoke_key(
    key_id: Annotated[str, typer.Argument(help="Id of the key (key_…).", show_default=False)], as_json: Json = False
) -> None:
    """Revoke an API key. It stops working at once."""
    with connect.open_client() as host:
        host.keys.revoke(key_id)
    screen.give({"revoked": key_id}, as_json=as_json, text=f"revoked {key_id}")


def rotate_master_key(as_json: Json = False) -> None:
    """Replace the master key that secrets are kept under. Nothing restarts, no value changes."""
    with connect.open_client() as host:
        view = host.keys.rotate_master()
    screen.give(view, as_json=as_json, text=f"{view.get('rewrapped', 0)} secrets are kept under a new master key")


def create_tenant(
    name: Annotated[str, typer.Argument(help="Name of the tenant.", show_default=False)], as_json: Json = False
) -> None:
    """Create a tenant."""
    with connect.open_client() as host:
        view = host.tenants.create(name)
    screen.give(view, as_json=as_json, text=f"created tenant {name}: nexus keys create --tenant {name}")


def list_tenants(as_json: Json = False) -> None:
    """List tenants."""
    with connect.open_client() as host:
        found = host.tenants.list()
    if as_json:
        screen.write_json(found)
        return
    screen.table(
        ("TENANT", "CREATED"), [(one.get("name"), screen.moment(one.get("created_at"))) for one in found], empty="no tenants"
    )
