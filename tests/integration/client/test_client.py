"""Both clients against a host on a real socket: every test runs once blocking and once in an event loop."""

import asyncio
import inspect
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.fakes.speaking_host import KEY, SpeakingHost, speaking_host

from nexus import AsyncClient, Client
from nexus.core import errors


class Both:
    """One way to write a test for both clients: a value is awaited, a stream is collected, whichever client it is."""

    def __init__(self, kind: str, host: SpeakingHost) -> None:
        self.kind, self.host, self.url = kind, host, host.url

    def do(self, room: str, verb: str, *arguments: Any, key: str = KEY, url: str | None = None, **named: Any) -> Any:
        if self.kind == "blocking":
            with Client(url or self.url, key) as client:
                answer = getattr(getattr(client, room), verb)(*arguments, **named)
                return list(answer) if hasattr(answer, "__next__") else answer
        return asyncio.run(self._do(room, verb, arguments, key, url, named))

    async def _do(self, room: str, verb: str, arguments: Any, key: str, url: str | None, named: Any) -> Any:
        async with AsyncClient(url or self.url, key) as client:
            answer = getattr(getattr(client, room), verb)(*arguments, **named)
            return [item async for item in answer] if hasattr(answer, "__anext__") else await answer


@pytest.fixture(scope="module")
def running() -> Iterator[SpeakingHost]:
    with speaking_host() as host:
        yield host


@pytest.fixture
def host(running: SpeakingHost) -> SpeakingHost:
    running.reset()
    running.agents["my-agent"] = {"name": "my-agent", "tenant": "default", "created_at": 1.0, "deployments": []}
    return running


@pytest.fixture(params=["blocking", "awaiting"])
def client(request: pytest.FixtureRequest, host: SpeakingHost) -> Both:
    return Both(request.param, host)


def test_a_run_gives_output_metadata_and_ids(client: Both) -> None:
    answer = client.do("agents", "run", "my-agent", "hello", context={"user_id": "123"}, session_id="s-1", environment="staging")
    assert answer.output == "echo hello"
    assert answer.metadata["tokens_used"] == 12
    assert answer.metadata["context"] == {"user_id": "123"}
    assert (answer.run_id, answer.session_id, answer.version) == ("run_1", "s-1", "1.0.0")
    sent = client.host.last("/agents/my-agent/run")
    assert (sent.headers["nexus-session-id"], sent.headers["nexus-environment"]) == ("s-1", "staging")
    assert sent.json == {"input": "hello", "context": {"user_id": "123"}}


def test_submit_and_status_look_as_document_1_shows_them(client: Both) -> None:
    response = client.do("agents", "submit", "my-agent", input="report", webhook="https://my-service/callback")
    assert response == {"task_id": "task_abc123", "status": "pending"}
    assert json.dumps(response) == '{"task_id": "task_abc123", "status": "pending"}'
    assert (response.task_id, response.agent, response["environment"]) == ("task_abc123", "my-agent", "production")
    assert client.host.last("/agents/my-agent/tasks").json["webhook"] == "https://my-service/callback"
    status = client.do("agents", "status", "task_abc123")
    assert status == {"status": "running", "progress": 45}
    assert str(status) == "{'status': 'running', 'progress': 45}"


def test_waiting_ends_with_the_task(client: Both) -> None:
    client.do("agents", "submit", "my-agent", "report")
    assert client.do("agents", "wait", "task_abc123", timeout=20) == {"status": "completed", "progress": 100, "output": "report"}
    assert client.do("agents", "result", "task_abc123").output == "report"


def test_waiting_is_bounded(client: Both) -> None:
    client.do("agents", "submit", "my-agent", "report")
    with pytest.raises(errors.Unavailable) as caught:
        client.do("agents", "wait", "task_abc123", timeout=0)
    assert caught.value.code == "task.not_finished"


def test_the_result_of_a_failed_task_is_its_error(client: Both) -> None:
    client.do("agents", "submit", "my-agent", "fail")
    with pytest.raises(errors.AgentFailed) as caught:
        client.do("agents", "result", "task_abc123")
    assert (caught.value.message, caught.value.cause) == ("it broke", "ValueError: no")


def test_a_cancelled_task_has_no_result(client: Both) -> None:
    client.do("agents", "submit", "my-agent", "report")
    assert client.do("agents", "cancel", "task_abc123")["status"] == "cancelled"
    with pytest.raises(errors.AgentFailed) as caught:
        client.do("agents", "result", "task_abc123")
    assert caught.value.code == "run.cancelled"


def test_a_stream_gives_text_and_ends_with_output_and_metadata(client: Both) -> None:
    chunks = client.do("agents", "stream", "my-agent", input="Explain quantum physics")
    assert "".join(chunk.text for chunk in chunks) == "Explain quantum physics "
    assert [chunk.event for chunk in chunks] == ["run.started", *["message.delta"] * 3, "run.completed"]
    assert (chunks[0].text, chunks[-1].text) == ("", "")
    assert (chunks[-1].output, chunks[-1].metadata) == ("Explain quantum physics ", {"tokens_used": 7})
    assert client.host.last("/agents/my-agent/stream").headers["accept"] == "text/event-stream"


def test_an_agent_that_does_not_stream_gives_its_text_at_the_end(client: Both) -> None:
    chunks = client.do("agents", "stream", "my-agent", input="at once")
    assert [(chunk.event, chunk.text) for chunk in chunks] == [("run.started", ""), ("run.completed", "at once ")]


def test_a_run_that_fails_in_its_stream_raises(client: Both) -> None:
    with pytest.raises(errors.AgentFailed) as caught:
        client.do("agents", "stream", "my-agent", input="fail")
    assert caught.value.cause == "ValueError: no"


def test_a_stream_that_ends_early_is_an_error_and_is_not_run_again(client: Both) -> None:
    with pytest.raises(errors.Unavailable) as caught:
        client.do("agents", "stream", "my-agent", input="cut")
    assert caught.value.code == "stream.cut"
    client.host.break_after = [1]
    with pytest.raises(errors.Unavailable) as caught:
        client.do("agents", "stream", "my-agent", input="one two three")
    assert caught.value.code == "host.connection_lost"
    assert len(client.host.requests) == 2


def test_task_events_go_on_after_a_broken_connection(client: Both) -> None:
    client.do("agents", "submit", "my-agent", "report")
    client.host.break_after = [1, 0, 2]
    events = client.do("agents", "events", "task_abc123")
    assert [event.id for event in events] == ["1", "2", "3", "4"]
    resumed = [request.headers.get("last-event-id") for request in client.host.requests if request.path.endswith("/events")]
    assert resumed == [None, "1", "1", "3"]
    assert [event.id for event in client.do("agents", "events", "task_abc123", "3")] == ["4"]


ERRORS = [
    ("fail", errors.AgentFailed, "agent.failed"),
    ("busy", errors.Exhausted, "limit.rate"),
    ("proxy", errors.Unavailable, "service.unavailable"),
]


@pytest.mark.parametrize(("given", "kind", "code"), ERRORS)
def test_problems_are_raised_as_what_they_are(client: Both, given: str, kind: type[errors.NexusError], code: str) -> None:
    with pytest.raises(kind) as caught:
        client.do("agents", "run", "my-agent", given)
    assert caught.value.code == code


def test_everything_a_problem_says_is_kept(client: Both) -> None:
    with pytest.raises(errors.AgentFailed) as caught:
        client.do("agents", "run", "my-agent", "fail")
    error = caught.value
    assert (error.phase, error.cause, error.next_step) == ("run", "ValueError: no", "nexus ai agent logs")
    assert error.log_tail == ("a", "\x1b[31mb")
    with pytest.raises(errors.Exhausted) as limited:
        client.do("agents", "run", "my-agent", "busy")
    assert limited.value.retry_after_s == 3.0


def test_a_wrong_key_is_unauthenticated(client: Both) -> None:
    with pytest.raises(errors.Unauthenticated):
        client.do("agents", "run", "my-agent", "x", key="nxk_wrong")


def test_no_host_says_how_to_start_one(client: Both) -> None:
    for verb, arguments in (("run", ("my-agent", "x")), ("stream", ("my-agent", "x")), ("events", ("task_1",))):
        with pytest.raises(errors.Unavailable) as caught:
            client.do("agents", verb, *arguments, url="http://127.0.0.1:9")
        assert (caught.value.code, caught.value.next_step) == ("host.unreachable", "nexus up")


BAD = [
    ("run", ("a/b", "x"), {}, "name.invalid"),
    ("run", ("..", "x"), {}, "name.invalid"),
    ("stream", ("a b", "x"), {}, "name.invalid"),
    ("run", ("my-agent", {1, 2}), {}, "input.unserialisable"),
    ("run", ("my-agent", float("nan")), {}, "input.unserialisable"),
    ("run", ("my-agent", "x"), {"session_id": "a\r\nX: y"}, "session.invalid_id"),
    ("run", ("my-agent", "x"), {"environment": "a\r\nX: y"}, "name.invalid"),
    ("submit", ("my-agent", "x"), {"idempotency_key": "ключ"}, "request.invalid"),
    ("status", ("",), {}, "task.invalid_id"),
]


@pytest.mark.parametrize(("verb", "arguments", "named", "code"), BAD)
def test_what_cannot_be_sent_is_refused_before_anything_is(
    client: Both, verb: str, arguments: tuple[Any, ...], named: dict[str, Any], code: str
) -> None:
    with pytest.raises(errors.Invalid) as caught:
        client.do("agents", verb, *arguments, **named)
    assert caught.value.code == code
    assert client.host.requests == []


def test_an_id_with_a_slash_stays_one_segment(client: Both) -> None:
    with pytest.raises(errors.NotFound):
        client.do("agents", "status", "../v1/keys")
    assert client.host.requests[-1].path == "/tasks/..%2Fv1%2Fkeys"


def test_lone_surrogates_travel_as_escapes(client: Both) -> None:
    assert client.do("agents", "run", "my-agent", "\ud800").output == "echo \ud800"


def test_leaving_a_stream_closes_its_connection(host: SpeakingHost) -> None:
    with Client(host.url, KEY) as client, client.agents.stream("my-agent", "endless") as stream:
        assert next(stream).event == "run.started"
    assert host.stream_left.wait(10)


async def test_leaving_an_async_stream_closes_its_connection(host: SpeakingHost) -> None:
    async with AsyncClient(host.url, KEY) as client, client.agents.stream("my-agent", "endless") as stream:
        assert (await anext(stream)).event == "run.started"
    assert await asyncio.to_thread(host.stream_left.wait, 10)


def test_both_clients_offer_the_same() -> None:
    with Client("http://127.0.0.1:9") as blocking:
        awaiting = AsyncClient("http://127.0.0.1:9")
        for room in ("agents", "secrets", "keys", "tenants", "host"):
            ours, theirs = getattr(blocking, room), getattr(awaiting, room)
            verbs = {name for name in dir(ours) if not name.startswith("_")}
            assert verbs == {name for name in dir(theirs) if not name.startswith("_")}
            for verb in verbs:
                assert inspect.signature(getattr(type(ours), verb)) == inspect.signature(getattr(type(theirs), verb))
