"""What the end of an attempt means, as tables."""

import json

import pytest

from nexus.core import errors
from nexus.core.phases import RunPhase
from nexus.kit import sse
from nexus.tasks import verdict
from nexus.wire import problem

FAILED = {"code": "agent.failed", "kind": "agent_failed", "detail": "no"}
BUSY = {"code": "model.unavailable", "kind": "unavailable", "detail": "busy"}


def event(name: str, data: object) -> sse.Event:
    return sse.Event(data=json.dumps(data), name=name)


def test_a_completed_run_keeps_output_and_metadata() -> None:
    found = verdict.judge_terminal(event("run.completed", {"output": None, "metadata": {"tokens_used": 1}}))
    assert isinstance(found, verdict.Finished)
    assert (found.phase, found.output, found.metadata) == (RunPhase.COMPLETED, "null", '{"tokens_used":1}')


@pytest.mark.parametrize("data", [FAILED, {"error": FAILED}, {"problem": FAILED}])
def test_a_failed_run_is_final_wherever_its_problem_stands(data: object) -> None:
    found = verdict.judge_terminal(event("run.failed", data))
    assert isinstance(found, verdict.Finished)
    assert found.phase is RunPhase.FAILED
    assert json.loads(found.error or "") == FAILED


@pytest.mark.parametrize("name", ["run.failed", "run.cancelled"])
def test_what_was_unavailable_or_cancelled_by_nobody_is_lost(name: str) -> None:
    assert isinstance(verdict.judge_terminal(event(name, BUSY)), verdict.Lost)


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "null", '{"a":' * 10000])
def test_a_terminal_event_that_cannot_be_read_is_still_terminal(text: str) -> None:
    found = verdict.judge_terminal(sse.Event(data=text, name="run.failed"))
    assert isinstance(found, verdict.Finished)
    assert found.phase is RunPhase.FAILED


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (503, verdict.NotBegun), (404, verdict.NotBegun), (401, verdict.NotBegun), (429, verdict.NotBegun),
        (502, verdict.Lost), (500, verdict.Finished), (400, verdict.Finished), (413, verdict.Finished), (504, verdict.Finished),
        (200, verdict.Finished), (302, verdict.Finished),
    ],
)  # fmt: skip
def test_answers_that_are_no_stream(status: int, kind: type) -> None:
    found = verdict.judge_answer(status, content_type="text/html", body=b"<html>", retry_after="7")
    assert isinstance(found, kind)
    if isinstance(found, verdict.NotBegun):
        assert found.retry_after_s == 7.0


@pytest.mark.parametrize("value", ["nan", "inf", "-5", "soon", ""])
def test_a_strange_retry_after_is_no_wait(value: str) -> None:
    found = verdict.judge_answer(503, content_type="", body=b"", retry_after=value)
    assert isinstance(found, verdict.NotBegun)
    assert found.retry_after_s == 0.0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"percent": 45}, (45.0, None)),
        ({"progress": 45.5, "message": "half"}, (45.5, "half")),
        ({"percent": 150}, (100.0, None)),
        ({"percent": -1}, (0.0, None)),
        ({"percent": True}, (None, None)),
        ({"percent": float("nan")}, (None, None)),
        ({"percent": "45", "message": 3}, (None, None)),
        ({"percent": None, "message": "a\0b\ud800"}, (None, "ab?")),
        ([1], (None, None)),
    ],
)
def test_progress_is_read_with_care(data: object, expected: tuple[object, object]) -> None:
    assert verdict.progress_of(event("progress", data)) == expected


def test_only_an_unreachable_gateway_means_that_nothing_began() -> None:
    away = errors.Unavailable("x", code="gateway.unreachable")
    broke = errors.Unavailable("x", code="upstream.failed")
    assert isinstance(verdict.judge_error(away), verdict.NotBegun)
    assert isinstance(verdict.judge_error(broke), verdict.Lost)


@pytest.mark.parametrize("code", ["instance.exited", "instance.out_of_memory", "health.failing"])
def test_an_instance_that_ended_in_the_run_has_lost_it(code: str) -> None:
    """The gateway names the cause of the loss; it is a loss all the same, and another attempt may follow."""
    told = errors.AgentFailed("an instance ended by itself and is started again", code=code)
    found = verdict.judge_answer(
        problem.status_of(told), content_type=problem.CONTENT_TYPE, body=problem.encode(told), retry_after=None
    )
    assert isinstance(found, verdict.Lost)
