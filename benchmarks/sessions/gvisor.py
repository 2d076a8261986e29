"""What a session under gVisor costs beside one in our own box: its start, a spare, replies, memory, freezing, in one run.

    .venv/bin/python -m benchmarks.sessions.gvisor [--rounds 7]

One LangGraph agent, deployed twice on a host of its own: `isolation: session`, and the same with `runtime_class: gvisor`. Needs
root and `runsc`. Nothing is asserted: read the table.
"""

import argparse
import os
import shutil
import time
from collections.abc import Sequence

from benchmarks.sessions import run

TIERS = {"our own box": "", "gVisor": "  runtime_class: gvisor\n"}
REPLIES = 200
LIVE = 5


class Host(run.Host):
    """Deploys the agent in one tier or the other."""

    def place(self, tier: str, *, warm: int, freeze: str) -> None:
        project = self.folder / "graph"
        project.mkdir(exist_ok=True)
        self.count += 1
        config = run.CONFIG.format(warm=warm, freeze=freeze).replace("1.0.0", f"1.0.{self.count}")
        (project / "config.yaml").write_text(config.replace("  memory:", TIERS[tier] + "  memory:"))
        (project / "agent.py").write_text(run.AGENT)
        (project / "requirements.txt").write_text("langgraph\n")
        self.nexus("ai", "agent", "deploy", "--path", str(project), "--env", "production", "--json")
        self.reply(f"first-{self.count}")


def measure(host: Host, tier: str, rounds: int) -> dict[str, object]:
    host.place(tier, warm=0, freeze="1h")
    told: dict[str, object] = {"new session": run.spread([host.new() for _ in range(rounds)])}
    before = run.available_bytes()
    names = [f"live-{host.count}-{number}" for number in range(LIVE)]
    for name in names:
        host.reply(name)
    time.sleep(1.0)
    told["MiB of each live session"] = round((before - run.available_bytes()) / LIVE / 2**20, 1)
    told["reply of a live session"] = run.spread([host.reply(names[0]) for _ in range(REPLIES)])
    host.kill_all()
    host.place(tier, warm=0, freeze="1s")
    for name in names:
        host.reply(name)
    deadline = time.monotonic() + 60
    while host.phases().get("frozen", 0) < LIVE and time.monotonic() < deadline:
        time.sleep(0.2)
    told["reply of a frozen session"] = run.spread([host.reply(name) for name in names])
    host.kill_all()
    host.place(tier, warm=2, freeze="1h")
    times = []
    for _ in range(rounds):
        time.sleep(5.0)  # until the pool is full again
        times.append(host.new())
    told["new session from the spare pool"] = run.spread(times)
    host.kill_all()
    return told


def show(rows: Sequence[tuple[str, dict[str, object]]]) -> None:
    for name in rows[0][1]:
        print(name, flush=True)
        for tier, told in rows:
            value = told[name]
            print(f"    {tier:14} {', '.join(f'{k} {v}' for k, v in value.items()) if isinstance(value, dict) else value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("runsc") is None:
        raise SystemExit("needs root and runsc (Debian: apt install runsc)")
    with run.running(Host) as host:
        show([(tier, measure(host, tier, options.rounds)) for tier in TIERS])


if __name__ == "__main__":
    main()
