"""What is kept about an instance holds no secret, survives a round trip, and decides its fate."""

from pathlib import Path

import pytest

from nexus.core import instances
from nexus.core.phases import InstancePhase
from nexus.drivers.process import launcher, record

SPEC = instances.InstanceSpec(
    id="ins_1", tenant="t", agent="a", environment="production", deployment_id="d", version_id="v", version="1",
    package_digest="0" * 64, entrypoint="agent:run", token="nxi_secret", door="/d", env={"A": "1"}, secrets={"KEY": "hidden"},
)  # fmt: skip


def made(phase: InstancePhase = InstancePhase.READY) -> record.Record:
    return record.Record(
        status=instances.InstanceStatus(id="ins_1", phase=phase, problem={"code": "x", "log_tail": ["l"]}),
        spec=SPEC,
        secret_names=("KEY",),
        handle=launcher.Handle(pid=1, born=2, boot="b", groups={"memory": "/m"}),
        was_ready=True,
    )


def test_no_token_and_no_secret_reaches_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    record.write(path, made())
    data = path.read_bytes()
    assert b"nxi_secret" not in data
    assert b"hidden" not in data
    assert path.stat().st_mode & 0o777 == 0o600
    found = record.decode(data)
    assert (found.status, found.handle, found.secret_names, found.was_ready) == (
        made().status,
        made().handle,
        ("KEY",),
        True,
    )
    assert found.spec == record.without_secrets(SPEC)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"format": 99}', b'{"format": 1}', b"\xff"])
def test_what_is_no_record_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        record.decode(data)


@pytest.mark.parametrize(
    ("phase", "alive", "fate"),
    [
        (InstancePhase.READY, True, "adopt"),
        (InstancePhase.STARTING, True, "adopt"),
        (InstancePhase.READY, False, "await_spec"),
        (InstancePhase.BUILDING, False, "await_spec"),
        (InstancePhase.FAILED, False, "keep_failed"),
        (InstancePhase.STOPPING, True, "finish_stop"),
        (InstancePhase.STOPPING, False, "finish_stop"),
    ],
)
def test_the_fate_of_what_is_found(phase: InstancePhase, alive: bool, fate: str) -> None:
    assert record.decide_fate(made(phase), alive=alive) == fate
