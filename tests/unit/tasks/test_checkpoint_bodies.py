"""What workers send as checkpoints: forged and malformed bodies are refused before anything is stored."""

from typing import Any

import pytest

from nexus.core import deployments, errors
from nexus.tasks import checkpoints
from nexus.wire import blobs

OWNER = deployments.InstanceOwner(
    instance_id="ins_1", tenant="default", agent="graph", environment="production", deployment_id="dep_1", version="1",
    session_id="ses-1",
)  # fmt: skip


class Untouched:
    """A store that nothing may reach."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was called")


def forged() -> bytes:
    """A blob that ends beyond the body."""
    told = {"ns": "", "id": "c", "versions": {}, "state": ["m", 0, 9], "meta": ["m", 0, 0], "values": {}}
    return blobs.Packer().pack({"checkpoint": told}) + b"x"


@pytest.mark.parametrize(
    "body",
    [b"", b"\0", b"[]", b"{", b'{"checkpoint": 1}', b'{"checkpoint": {"ns": ""}}', b'{"writes": {"ns": 1}}',
     b'{"checkpoint": {"ns": "", "id": "c", "versions": {}, "state": ["m", "!"], "meta": ["m", ""], "values": {}}}',
     forged(), forged()[:40]],
)  # fmt: skip
async def test_what_is_no_checkpoint_is_refused_and_stores_nothing(body: bytes) -> None:
    room = checkpoints.Checkpoints(store=Untouched())
    with pytest.raises(errors.Invalid) as refused:
        await room.put(OWNER, "ses-1", body)
    assert refused.value.code == "checkpoint.invalid"
    with pytest.raises(errors.Forbidden):
        await room.put(OWNER, "ses-2", b"{}")
