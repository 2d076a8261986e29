"""Leases, lane pauses, webhook schedule and signatures: pure, as tables."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime

import pytest
import standardwebhooks

from nexus.core.phases import RunPhase
from nexus.kit import backoff
from nexus.ports import task_store
from nexus.tasks import endpoints, leases, pacing, schedule, signing
from nexus.tasks.settings import WebhookSettings

LANE = task_store.Lane(tenant="t", agent="a", environment="production")


def test_an_owner_is_dead_when_its_beats_stand_still_on_our_own_clock() -> None:
    watch = leases.OwnerWatch(lease_s=10, orphan_s=2)
    assert watch.decide_dead({"a": (5, True), "b": (1, False)}, now=100) == []
    assert watch.decide_dead({"a": (6, True), "b": (1, False)}, now=101) == []
    assert watch.decide_dead({"a": (6, True), "b": (1, False)}, now=102) == [("b", 1)]
    assert watch.decide_dead({"a": (6, True), "b": (2, False)}, now=109) == []
    assert watch.decide_dead({"a": (6, True)}, now=111) == [("a", 6)]
    assert watch.decide_dead({"a": (7, True)}, now=112) == []


def test_a_lane_rests_longer_each_time_and_is_well_after_a_run() -> None:
    lanes = pacing.Pacing(backoff.Backoff(first_s=1, longest_s=4))
    assert lanes.defer(LANE, now=0) == 1
    assert lanes.defer(LANE, now=0.5) == 0.5
    assert lanes.paused(now=0.9) == [LANE]
    assert lanes.next_wake_s(now=0.25) == 0.75
    assert lanes.paused(now=1) == []
    assert [lanes.defer(LANE, now=now) for now in (1, 10, 20)] == [2, 4, 4]
    lanes.began(LANE)
    assert lanes.defer(LANE, now=30, at_least_s=3) == 3


@pytest.mark.parametrize(
    ("attempt", "status", "retry_after", "pause"),
    [
        (1, 500, None, 5.0), (2, None, None, 30.0), (3, 500, None, None), (1, 410, None, None),
        (1, 429, "60", 60.0), (1, 503, "1", 5.0), (1, 503, "99999999", 86400.0), (1, 503, "Wed, 21 Oct 2026 07:28:00 GMT", 90.0),
        (1, 503, "-1", 5.0), (1, 503, "٣", 5.0), (1, 503, "Wed, 99 Oct 2026", 5.0),
    ],
)  # fmt: skip
def test_webhooks_are_tried_again_on_schedule(
    attempt: int, status: int | None, retry_after: str | None, pause: float | None
) -> None:
    asked = schedule.parse_retry_after(retry_after, now=datetime(2026, 10, 21, 7, 26, 30, tzinfo=UTC).timestamp())
    planned = schedule.plan_retry(attempt, schedule_s=(5, 30), status=status, retry_after_s=asked, draw=lambda: 0.0)
    assert planned == pause


def test_a_slow_endpoint_gives_its_quick_place_up_and_gets_one_call_at_a_time() -> None:
    places = endpoints.Endpoints(WebhookSettings(concurrency=2, slow=1, per_host=4))
    assert places.rooms(now=0) == {}, "who is not named may get one call"
    assert places.begin("good")
    places.end("good", quick=True, well=True)
    assert places.rooms(now=0) == {"good": 4}
    assert places.begin("hangs")
    assert places.begin("good")
    assert (places.free(), places.rooms(now=0)) == (0, {"good": 3, "hangs": 0})
    assert places.grow_slow("hangs")
    assert places.free() == 1
    assert not places.grow_slow("good"), "there is no more room among the slow ones"
    assert places.rooms(now=0) == {"hangs": 0, "good": 0}
    places.end("good", quick=True, well=False)
    places.end("hangs", quick=False, well=False)
    assert (places.free(), places.rooms(now=0)) == (2, {})
    assert not places.begin("hangs"), "slow from the start"
    places.end("hangs", quick=False, well=True)
    assert places.rooms(now=0) == {"hangs": 4}


def test_an_endpoint_that_asks_for_a_pause_gets_it() -> None:
    places = endpoints.Endpoints(WebhookSettings())
    places.quiet("busy", until=10.0)
    places.quiet("busy", until=5.0)
    assert places.rooms(now=9.9) == {"busy": 0}
    assert places.rooms(now=10.0) == {}


def test_jitter_only_lengthens() -> None:
    assert schedule.plan_retry(1, schedule_s=(10,), status=None, retry_after_s=None, draw=lambda: 1.0) == 12.0


def finished_task() -> task_store.Task:
    return task_store.Task(
        id="task_1", number=1, lane=LANE, principal="key_1", phase=RunPhase.COMPLETED, attempt=1, last_seq=2, progress=100.0,
        message=None, session_id="s", output='{"text":"Gr\\u00fc\\u00dfe"}', metadata='{"tokens_used":3}', error=None,
        cancel_requested=False, created_at=1.0, started_at=2.0, finished_at=1763618400.25, webhook_url="https://x/",
        delivery=task_store.Delivery(status="pending", attempts=3, last_error="no"),
    )  # fmt: skip


def test_the_body_is_the_same_for_every_attempt_and_names_the_result() -> None:
    body = json.loads(signing.render_body(finished_task()))
    assert (body["type"], body["timestamp"]) == ("task.completed", "2025-11-20T06:00:00.250Z")
    assert body["data"]["task_id"] == "task_1"
    assert body["data"]["output"] == {"text": "Grüße"}
    assert "webhook" not in body["data"]


def test_the_signature_is_the_one_the_standard_computes() -> None:
    secret = signing.derive_secret(b"k" * 32, "default")
    assert secret != signing.derive_secret(b"k" * 32, "other")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, b"whd_1.1700000000.{}", hashlib.sha256).digest()).decode()
    assert signing.sign(secret, message_id="whd_1", timestamp=1700000000, body=b"{}") == f"v1,{expected}"


def test_a_foreign_verifier_accepts_it_and_refuses_a_changed_byte() -> None:
    import time

    secret, now = signing.derive_secret(b"k" * 32, "default"), int(time.time())
    body = signing.render_body(finished_task())
    headers = {
        "webhook-id": "whd_1", "webhook-timestamp": str(now),
        "webhook-signature": signing.sign(secret, message_id="whd_1", timestamp=now, body=body),
    }  # fmt: skip
    verifier = standardwebhooks.Webhook(secret)
    assert verifier.verify(body, headers)["type"] == "task.completed"
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verifier.verify(body.replace(b"task_1", b"task_2"), headers)


def test_what_the_project_file_says_about_tasks_becomes_the_agents_policy():
    from nexus.apps import control_tasks
    from nexus.wire import project_file

    text = """
name: a
hosting:
  tasks:
    max_attempts: 5
    concurrency: 2
    queue_timeout: 10m
    unknown: fail
    retry: {first: 2s, longest: 1m, on: [agent_failed]}
"""
    policy = control_tasks.read_policy(project_file.parse_project(text, "config.yaml"))
    assert (policy.max_attempts, policy.concurrency, policy.queue_timeout_s) == (5, 2, 600.0)
    assert policy.retry is not None
    assert (policy.retry.first_s, policy.retry.longest_s, policy.retry.kinds) == (2.0, 60.0, ("agent_failed",))
    assert policy.retry.unknown == "fail"
    assert control_tasks.read_policy(project_file.parse_project("name: a", "config.yaml")).retry is None
