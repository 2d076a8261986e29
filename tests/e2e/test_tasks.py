"""Tasks on a real host, through the command line: batches, schedules, steps that survive a death, dead letters."""

import json
from pathlib import Path

from tests.e2e.conftest import Host, until, write_agent

CODE = """
import os
import random
import time

from nexus.ai.agents import Agent


class Shop(Agent):
    async def process(self, input):
        if input.get("fail"):
            raise ValueError("no such order")
        number = await self.step("number", random.random)
        died = await self.step("begun", time.time)
        if time.time() - died < 0.2 and not input.get("calm"):
            os._exit(9)
        return {"number": number, "order": input["order"]}


agent = Shop()
"""
CONFIG = """
hosting:
  tasks:
    max_attempts: 9
    retry: {first: 300ms, longest: 500ms}
"""


def finished(host: Host, task_id: str) -> dict[str, object]:
    def over() -> dict[str, object] | None:
        status, seen, _ = host.call("GET", f"/tasks/{task_id}?wait=5")
        return seen if status == 200 and seen["status"] in ("completed", "failed", "cancelled") else None

    return until(over, timeout=60, what=f"the end of {task_id}")


def test_tasks_as_a_user_meets_them(host: Host, tmp_path: Path) -> None:
    folder = write_agent(tmp_path, "shop", CODE, config=CONFIG)
    host.ok("ai", "agent", "deploy", "shop", "--env", "production", cwd=folder)

    died = host.ok("ai", "agent", "submit", "shop", "--data", '{"order": 1}', "--json").json
    done = finished(host, died["task_id"])
    assert (done["status"], done["output"]["order"]) == ("completed", 1), done
    assert done["attempt"] > 1, "it died in the middle"

    lines = tmp_path / "orders.jsonl"
    lines.write_text("".join(json.dumps({"input": {"order": n, "calm": True}, "priority": n}) + "\n" for n in range(20)))
    made = host.ok("ai", "agent", "task", "batch", "shop", str(lines), "--json").json
    assert [finished(host, view["task_id"])["output"]["order"] for view in made] == list(range(20))

    failed = host.ok("ai", "agent", "submit", "shop", "--data", '{"fail": true}', "--json").json
    assert finished(host, failed["task_id"])["dead"] is True
    assert failed["task_id"] in host.ok("ai", "agent", "task", "list", "shop", "--dead").out
    again = host.ok("ai", "agent", "task", "requeue", "--agent", "shop", "--json").json
    assert finished(host, again[0]["task_id"])["origin"] == failed["task_id"]
    assert host.ok("ai", "agent", "task", "purge", "--agent", "shop", "--yes", "--json").json == {"deleted": 1}
    result = host.cli("ai", "agent", "task", "result", failed["task_id"])
    assert "no such order" in result.out + result.err

    rest = host.ok("ai", "agent", "submit", "shop", "--data", '{"order": 5, "calm": true}', "--delay", "1h", "--json").json
    assert host.ok("ai", "agent", "task", "pause", rest["task_id"], "--json").json["status"] == "waiting"
    assert host.ok("ai", "agent", "task", "resume", rest["task_id"], "--json").json["status"] == "pending"
    assert host.ok("ai", "agent", "task", "priority", rest["task_id"], "7", "--json").json["priority"] == 7
    assert host.ok("ai", "agent", "task", "cancel", rest["task_id"], "--json").json["status"] == "cancelled"

    host.ok("schedules", "create", "past", "shop", "--data", '{"order": 9, "calm": true}', "--at", "2026-01-01T00:00:00Z")
    fired = until(lambda: host.call("GET", "/v1/schedules/past")[1].get("last_task_id"), what="the schedule's task")
    assert finished(host, fired)["output"]["order"] == 9
    host.ok("schedules", "create", "nightly", "shop", "--cron", "30 22 * * *", "--timezone", "Europe/Berlin")
    assert "nightly" in host.ok("schedules", "list").out
    assert len(host.ok("schedules", "show", "nightly", "--json").json["upcoming"]) == 5
    wrong = host.cli("schedules", "create", "bad", "shop", "--cron", "never", "--json")
    assert (wrong.code, wrong.json["error"]["code"]) == (2, "schedule.invalid_cron")
    for name in ("past", "nightly"):
        host.ok("schedules", "delete", name)
