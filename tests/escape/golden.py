"""What the escape probe may do in each tier: read from `golden.json`, shown below `page.md` in `docs/reference/escape-suite.md`.

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
HEAD = (HERE / "page.md").read_text()

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
