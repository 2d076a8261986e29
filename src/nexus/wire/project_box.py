"""The settings of `hosting` that say how closed an agent's box is. What they mean stands in `docs/explain/isolation.md`."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from nexus.wire.project_quantity import Rate, Size
from nexus.wire.project_section import Section, conflict

_EGRESS = re.compile(r"(\*|(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[1-9]\d{0,4})?")
EVERYWHERE = "*"
WAY_OUT = "egress"


class Box(Section):
    """The part of `hosting` that `drivers.process.sandbox` reads."""

    security_context: Literal["restricted", "baseline"] = Field(
        default="restricted", description="baseline lets the agent trace its own processes and make namespaces (browsers)"
    )
    runtime_class: Literal["gvisor"] | None = Field(
        default=None, description="gvisor: under a kernel of its own (runsc), where this is installed; refused where it is not"
    )
    read_only_root: bool = Field(default=True, description="Whether / of the agent's box takes no new files")
    network: Literal["host", "isolated", "egress"] = Field(
        default="host", description="isolated: nothing but the platform's doors; egress: these and what hosting.egress names"
    )
    egress: list[str] = Field(
        default_factory=list,
        max_length=256,
        description="Hosts for network: egress: api.example.com, *.example.com, host:port, or * for every public host",
    )
    network_limit: Rate | None = Field(
        default=None, description="Rate of the way out, each way: 100Mbps, 2MB/s; with no network named, network is egress to *"
    )
    disk: Size | None = Field(
        default=None, description="How much the work directory may hold: 2Gi unless set; a file for each 16 KiB"
    )
    processes: int | None = Field(default=None, ge=16, le=100_000, description="Processes and threads at once: 1024 unless set")
    untrusted: bool = Field(default=False, description="Refuse machines where a layer of isolation is missing")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        for position, entry in enumerate(self.egress):
            match = _EGRESS.fullmatch(entry)
            if match is None or ".." in entry or int((match[4] or ":0")[1:]) > 65535:
                raise conflict(
                    f"{entry[:80]!r} is not a host such as api.example.com, *.example.com or host:5432", "egress", str(position)
                )
        if self.egress and self.network != "egress":
            raise conflict(f"hosts are listed, but network is {self.network}; write network: egress", "egress")
        if self.network_limit is not None and self.network != "egress":
            if "network" in self.model_fields_set:
                raise conflict(
                    f"a rate is kept on the way out, but network is {self.network}; write network: egress", "network_limit"
                )
            self.network, self.egress = "egress", [EVERYWHERE]
        return self
