"""Tokens in answers and streams; records in batches; the surface of paths."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.gateway import model_request, model_routing, outbox, paths, usage
from nexus.gateway.call import Door


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}, (3, 4)),
        ({"usage": {"prompt_tokens": 3, "total_tokens": 3}}, (3, 0)),
        ({"usage": {"input_tokens": 3, "output_tokens": 4}}, (3, 4)),
        (
            {"usage": {"input_tokens": 3, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 5, "output_tokens": 4}},
            (18, 4, 10, 5),
        ),
        ({"usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}}, (9, 4, 8)),
        (
            {"usage": {"input_tokens": 9, "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 3}}},
            (9, 4, 0, 0, 3),
        ),
    ],
)
def test_usage_in_json(answer, tokens):
    assert usage.parse_usage(answer) == usage.Tokens(*tokens)


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"usage": None}, {"usage": {}}, {"usage": {"prompt_tokens": "3"}}, {"usage": {"prompt_tokens": -1}}]
)
def test_no_usage(answer):
    assert usage.parse_usage(answer) is None


EVENTS = [
    b'data: {"choices": [{"delta": {"content": "a"}}], "usage": null}\n\n',
    b": a comment\r\n\r\n",
    b'event: x\r\ndata: {"choices": [{"delta": {"content": "b"}}]}\r\n\r\n',
    b'data: {"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": 2}}\n\n',
    b"data: [DONE]\n\n",
]


@given(st.lists(st.integers(min_value=1, max_value=400), max_size=12), st.booleans())
def test_however_a_stream_is_cut_it_is_counted_alike(cuts, hide):
    whole = b"".join(EVENTS)
    counter = usage.StreamCounter(hide_usage=hide)
    passed, start = b"", 0
    for cut in cuts:
        passed += counter.feed(whole[start : start + cut])
        start += cut
    passed += counter.feed(whole[start:]) + counter.flush()
    assert counter.tokens == usage.Tokens(8, 2)
    assert passed == (b"".join(EVENTS[:3] + EVENTS[4:]) if hide else whole)


def test_an_event_without_end_is_let_through_and_not_kept():
    counter = usage.StreamCounter(hide_usage=True)
    passed = sum(len(counter.feed(b"x" * 65536)) for _ in range(200))
    assert passed == 200 * 65536


def test_half_an_event_at_the_end_is_not_lost():
    counter = usage.StreamCounter(hide_usage=True)
    assert counter.feed(b"data: half") == b""
    assert counter.flush() == b"data: half"


def test_the_ledger_keeps_the_newest_runs_apart_by_instance():
    ledger = usage.Ledger(most=2)
    ledger.add("ins_1", "run_1", tokens=usage.Tokens(1, 2), calls=1)
    ledger.add("ins_2", "run_1", tokens=usage.Tokens(100, 200), calls=1)
    ledger.add("ins_1", "run_1", tokens=usage.Tokens(1, 1), calls=1, estimated=True)
    assert ledger.of_run("ins_1", "run_1") == {"input_tokens": 2, "output_tokens": 3, "calls": 2, "estimated": True}
    ledger.add("ins_1", "run_2", tokens=usage.Tokens(), calls=1)
    assert ledger.of_run("ins_2", "run_1")["calls"] == 0


def record(number):
    return {"kind": "run", "id": str(number)}


def test_batches_are_kept_until_they_are_acknowledged():
    box = outbox.Outbox()
    for number in range(1200):
        box.add(record(number))
    sizes = [len(box.take_batch()[1]) for _ in range(3)]
    assert (sizes, box.take_batch(), box.pending) == ([500, 500, 200], None, 1200)
    box.acknowledge(2)
    box.acknowledge(77)
    assert [number for number, _ in box.unacknowledged()] == [1, 3]
    assert not box.all_stored.is_set()
    box.acknowledge(1)
    box.acknowledge(3)
    assert box.all_stored.is_set()
    assert box.pending == 0


def test_heavy_records_go_in_batches_of_bounded_size_without_waiting():
    box = outbox.Outbox()
    for number in range(10):
        box.add(b"%d" % number + b"x" * 1024 * 1024)
    assert box.weight == 10 * (1024 * 1024 + 1)
    sizes = []
    while (taken := box.take_batch()) is not None:
        number, batch = taken
        sizes.append((len(batch), box.goes_on))
        box.acknowledge(number)
    assert sizes == [(4, True), (4, True), (2, False)]
    assert (box.weight, box.pending) == (0, 0)


def test_when_control_is_away_memory_stays_bounded_and_the_oldest_go():
    box = outbox.Outbox(most=1000)
    for number in range(1500):
        box.add(record(number))
    assert (box.dropped, box.pending) == (500, 1000)
    assert box.take_batch()[1][0] == record(500)
    for _ in range(20):
        box.take_batch()
    assert len(box.unacknowledged()) <= 8


@pytest.mark.parametrize(
    ("path", "inside", "door"),
    [
        (b"/agents/a/run", False, Door.RUN),
        (b"/agents/a/stream", False, Door.RUN),
        (b"/agents/a/tasks", False, Door.CONTROL),
        (b"/agents", False, Door.CONTROL),
        (b"/agents/A/run", False, None),
        (b"/agents/a_b/run", False, None),
        (b"/health", False, Door.HEALTH),
        (b"/v1/models", False, Door.MODEL_LIST),
        (b"/v1/models/x/y", False, Door.MODEL_LIST),
        (b"/v1/messages", False, Door.MODEL),
        (b"/v1/agents", False, Door.CONTROL),
        (b"/v1", False, Door.CONTROL),
        (b"/v10", False, None),
        (b"/tasks/t", False, Door.CONTROL),
        (b"/metrics", False, Door.CONTROL),
        (b"/consoles", False, None),
        (b"/", False, None),
        (b"/door/runs/r/usage", True, Door.RUN_USAGE),
        (b"/door/runs/r/usage", False, Door.CONTROL),
        (b"/door/traces", True, Door.CONTROL),
        (b"/docs", False, Door.CONTROL),
        (b"/openapi.json", False, Door.CONTROL),
        (b"/console/x", False, Door.CONTROL),
    ],
)
def test_where_paths_lead(path, inside, door):
    match = paths.find(path, inside=inside)
    assert (match.door if match else None) is door
    assert (match is not None and match.public) == path.startswith((b"/docs", b"/openapi", b"/console/", b"/health"))


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("https://api.openai.com/v1", ("tls:api.openai.com:443", "api.openai.com", "/v1")),
        ("http://127.0.0.1:8080/x/v1/", ("tcp:127.0.0.1:8080", "127.0.0.1:8080", "/x/v1")),
        ("http://[::1]:80", ("tcp:[::1]:80", "[::1]:80", "")),
        ("unix:/run/m.sock", ("unix:/run/m.sock", "localhost", "/v1")),
    ],
)
def test_base_urls(url, parsed):
    assert model_routing.parse_base_url(url) == parsed


def test_a_body_that_is_not_an_object_says_why():
    assert model_request.parse_body(json.dumps({"model": "m"}).encode()) == {"model": "m"}


ODD_EVENTS = (
    b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\n',
    b'data: {"choices": [{"delta": {"content": "a \\"usage\\" in words"}}], "usage": null}\n\n',
    b'event: content_block_delta\ndata: {"delta": {"text": "data: {"}}\n\n',
    b": still there\n\n",
    b"data: first\ndata: second\n\n",
    b'data: {"choices": []}\r\n\r\n',
    b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}\n\n',
    b'event: message_delta\ndata: {"usage": {"output_tokens": 9}}\n\n',
    b"data: [DONE]\n\n",
    b"\n\n",
)


@given(
    chosen=st.lists(st.sampled_from(ODD_EVENTS), max_size=12),
    cuts=st.lists(st.integers(0, 900), max_size=8),
    hide=st.booleans(),
)
def test_it_counts_the_same_however_a_stream_is_cut_into_parts(chosen, cuts, hide):
    stream = b"".join(chosen)
    whole = usage.StreamCounter(hide_usage=hide)
    slowly = b"".join(whole.feed(bytes([byte])) for byte in stream) + whole.flush()
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    parts = usage.StreamCounter(hide_usage=hide)
    quickly = b"".join(parts.feed(stream[start:end]) for start, end in itertools.pairwise(places)) + parts.flush()
    assert (parts.pieces, parts.tokens, parts.final, quickly) == (whole.pieces, whole.tokens, whole.final, slowly)
