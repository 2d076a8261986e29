"""Automatic scaling on a real host: a queue that grows adds instances within the bounds, an idle agent loses them again."""

from pathlib import Path

from tests.e2e.conftest import Host, until, write_agent

CODE = """
import asyncio

async def agent(input):
    await asyncio.sleep(input)
    return "done"
"""
CONFIG = """
hosting:
  concurrency: 1
autoscaling:
  enabled: true
  min_replicas: 1
  max_replicas: 3
  metrics:
    - type: cpu
      target: 70
    - type: memory
      target: 80
    - type: custom
      name: queue_depth
      target: 2
"""


def test_a_growing_queue_adds_instances_within_the_bounds(host: Host, tmp_path: Path) -> None:
    folder = write_agent(tmp_path, "elastic", CODE, config=CONFIG)
    host.ok("ai", "agent", "deploy", "elastic", "--env", "staging", cwd=folder)

    def shown() -> dict[str, object]:
        return dict(host.ok("ai", "agent", "show", "elastic", "--json").json["deployments"][0])

    assert shown()["replicas"] == 1
    tasks = [host.call("POST", "/agents/elastic/tasks", {"input": 60})[1]["task_id"] for _ in range(12)]
    try:
        until(lambda: shown()["ready"] == 3, timeout=60, what="three instances")
        assert shown()["replicas"] == 3
    finally:
        for task in tasks:
            host.call("POST", f"/tasks/{task}/cancel", {})
        host.ok("ai", "agent", "delete", "elastic", "--yes")
