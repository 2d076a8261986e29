"""Whose instance a token is, from what the reconciler saw last: doors are knocked at with every run, and most tokens are known.

One that is not in the picture, being too new, is looked for in the store.
"""

from collections.abc import Awaitable, Callable

from nexus.core import deployments
from nexus.hosting import loop

Ask = Callable[[str], Awaitable[deployments.InstanceOwner | None]]


class Owners:
    """`picture` is set once there is a reconciler. A token is good until the round after its instance has gone, as at the
    gateways, which are told by the same picture."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.picture: Callable[[], loop.Picture] = loop.Picture
        self._seen: loop.Picture | None = None
        self._known: dict[str, deployments.InstanceOwner] = {}

    async def find(self, token_hash: str) -> deployments.InstanceOwner | None:
        picture = self.picture()
        if picture is not self._seen:
            self._seen, self._known = picture, read(picture)
        return self._known.get(token_hash) or await self._ask(token_hash)


def read(picture: loop.Picture) -> dict[str, deployments.InstanceOwner]:
    """Owners by the stored form of their tokens."""
    found = {}
    for one in picture.deployments:
        for each in picture.instances.get(one.id, ()):
            revision = picture.revisions.get((one.id, each.revision))
            if revision is not None:
                found[each.token_hash] = deployments.InstanceOwner(
                    instance_id=each.id,
                    tenant=each.tenant,
                    agent=one.agent,
                    environment=one.environment,
                    deployment_id=one.id,
                    version=revision.version,
                )
    return found
