"""What the escape probe may do in each tier: read from `golden.json`, shown in `docs/reference/escape-suite.md`.

`python tests/escape/golden.py` runs every tier on this machine and writes both anew; a reviewer sees each change of a verdict.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE / "golden.json"
PAGE = HERE.parents[1] / "docs" / "reference" / "escape-suite.md"
NEEDED = "need: "
HEAD = """# The escape suite

`make escape` runs one hostile agent in every tier of isolation. It makes each attempt below in a child of its own, beside a
neighbour's box that holds a flag everywhere it can, and with a secret, a process, a port and a socket of the host to look for.
The attempts `D…` are made through the way out: a tier without one refuses them, and what `network: host` reaches is not asked.
An attempt that succeeds where this table says `no` fails the build; so does a need that is not met. The harness also removes each
layer in turn, looks for processes that outlive their instance, and compares the host before and after. What gVisor's kernel
allows it allows within itself: a namespace made there is none of this machine's.

| tier | what it is |
|---|---|
| restricted | the default: every layer, the host's network |
| isolated | the same with `hosting.network: isolated` |
| egress | the same with `hosting.network: egress` |
| baseline | `hosting.security_context: baseline` |
| user | restricted, under a supervisor that is an ordinary user's |
| unboxed | what is left where namespaces are forbidden: Landlock, seccomp, no new privileges; for code you trust |
| session | `hosting.isolation: session`, isolated: the neighbour is another session of the same instance |
| gvisor | `hosting.runtime_class: gvisor`, isolated: the kernel is gVisor's (`runsc`) |

This page is written by `python tests/escape/golden.py` from what it saw. **yes** is worth a thought; what it means is in
[isolation](../explain/isolation.md).

"""

Table = Mapping[str, Mapping[str, str]]


def read() -> Table:
    table: Table = json.loads(TABLE.read_text())
    return table


def surprises(tier: str, found: Mapping[str, list[str]], table: Table) -> list[str]:
    """What this run shows that the table does not allow, and needs that are not met."""
    lines = []
    for name, (verdict, said) in found.items():
        if name.startswith(NEEDED):
            if verdict != "allowed":
                lines.append(f"{name}: {said}")
        elif verdict == "allowed" and table.get(name, {}).get(tier) != "allowed":
            lines.append(f"{name}: allowed: {said}")
    return lines


def render(table: Table) -> str:
    tiers = list(next(iter(table.values())))
    lines = [f"| attempt | {' | '.join(tiers)} |", "|---|" + "---|" * len(tiers)]
    for name, verdicts in table.items():
        shown = [
            "**yes**" if verdicts[tier] == "allowed" and not name.startswith(NEEDED) else _word(verdicts[tier]) for tier in tiers
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return HEAD + "\n".join(lines) + "\n"


def _word(verdict: str) -> str:
    return "yes" if verdict == "allowed" else "no"


async def look() -> dict[str, dict[str, str]]:
    import tiers

    table: dict[str, dict[str, str]] = {}
    for tier, options in tiers.OPTIONS.items():
        async with tiers.supervised(tier) as rig:
            for name, (verdict, _) in (await tiers.attack(rig, options)).items():
                table.setdefault(name, {})[tier] = verdict
    return table


def main() -> None:
    sys.path[:0] = [str(HERE), str(HERE.parent / "integration" / "drivers")]
    table = asyncio.run(look())
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    PAGE.write_text(render(table))


if __name__ == "__main__":
    main()
