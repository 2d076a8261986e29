"""Authentication of API calls: a key in `Authorization: Bearer` or `X-Api-Key` becomes a Principal.

Routers take `Caller` (any authenticated principal) or `DoorCaller` (an instance at its door). An admin may name another tenant
with `?tenant=`; the service token of the dispatcher with the `Nexus-Tenant` header.
"""

from typing import Annotated

from fastapi import Depends, Request

from nexus.api.services import Services
from nexus.core import deployments, errors, principals


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _rooms(request: Request) -> Services:
    return services_of(request)  # FastAPI would call a plain function in a thread


def bearer_of(request: Request) -> str:
    """The credential of a request, or `Unauthenticated` (code `auth.required`)."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    if key := request.headers.get("x-api-key", "").strip():
        return key
    raise errors.Unauthenticated(
        "this call needs an API key",
        next_step="send Authorization: Bearer nxk_…; on the host's own machine the key is in $NEXUS_HOME/admin.key",
    )


async def _caller(request: Request) -> principals.Principal:
    services = services_of(request)
    caller: principals.Principal = await services.identity.authenticate(bearer_of(request))
    wanted = request.query_params.get("tenant")
    if wanted is None or wanted == caller.tenant:
        return caller
    return await _in_tenant(services, caller, wanted)


async def _in_tenant(services: Services, caller: principals.Principal, tenant: str) -> principals.Principal:
    caller.require(principals.Action.MANAGE_HOST)
    moved: principals.Principal = await services.identity.in_tenant(caller, tenant)
    return moved


async def _instance(request: Request) -> deployments.InstanceOwner:
    owner: deployments.InstanceOwner = await services_of(request).identity.instance_of(bearer_of(request))
    return owner


Caller = Annotated[principals.Principal, Depends(_caller)]
DoorCaller = Annotated[deployments.InstanceOwner, Depends(_instance)]
Rooms = Annotated[Services, Depends(_rooms)]
