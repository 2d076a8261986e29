"""Every driver passes the one suite: the fake that other tests stand on, and the process driver with a real supervisor."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nexus.core import ids, instances
from nexus.testing import drivers
from nexus.testing.driver_contract import DriverContract

sys.path.insert(0, str(Path(__file__).parents[1] / "integration" / "drivers"))
import supervisor_rig


class FakeRig:
    def __init__(self) -> None:
        self.driver = drivers.FakeDriver(drivers.Knobs(outcome=self._outcome))

    def _outcome(self, spec: instances.InstanceSpec) -> str:
        if spec.entrypoint == "bad":
            return "failed"
        self.driver.say(spec.id, "hello")
        return "ready"

    def spec(self, behaviour: str) -> instances.InstanceSpec:
        return instances.InstanceSpec(
            id=ids.new_id(ids.INSTANCE),
            tenant="acme",
            agent="fake",
            environment="development",
            deployment_id="dep_1",
            version_id="ver_1",
            version="1.0.0",
            package_digest="0" * 64,
            entrypoint=behaviour,
            token="nxi",
            door="/nowhere",
        )

    async def crash(self, instance_id: str) -> None:
        self.driver.crash(instance_id)

    async def cut(self) -> None:
        self.driver.knobs.unreachable = True


class TestFakeDriver(DriverContract):
    @pytest.fixture
    def rig(self) -> FakeRig:
        return FakeRig()


class TestProcessDriver(DriverContract):
    @pytest.fixture
    async def rig(self) -> AsyncIterator[supervisor_rig.SupervisorRig]:
        async with supervisor_rig.started() as made:
            yield made
