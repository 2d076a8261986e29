"""A head that fits a shape is one that the line reader would have read too, with the same meaning and the same values."""

import asyncio
import gc
import weakref

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nexus.gateway import lines, process, routes, runs_door, server, shapes
from nexus.gateway.settings import Settings
from nexus.kit import home

READER = runs_door.build_reader()
TRACE = b"00-0764721fe38e85a0a4c1c5202542c424-8a85eabeaaebecb5-01"
HEAD = (
    b"POST /agents/a/run HTTP/1.1\r\nHost: localhost\r\nNexus-Session-Id: %b\r\nAccept: */*\r\ntraceparent: %b\r\n"
    b"Content-Length: %b\r\nX-Last: 1\r\n\r\n%b"
)
MODEL = HEAD % (b"first", TRACE, b"2", b"{}")
KNOWN: shapes.Known[str] = shapes.Known(shapes.IN_REQUESTS)
SHAPE = KNOWN.learn(MODEL, meaning="it", table=KNOWN)


def test_values_are_found_in_their_gaps():
    other = b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-00"
    assert SHAPE.fit(MODEL) == (b"first", TRACE, None, b"{}")
    assert SHAPE.fit(HEAD % (b"customer-42", other, b"11", b"x" * 11)) == (b"customer-42", other, None, b"x" * 11)


def test_users_differ_from_message_to_message():
    def sent(user):
        return MODEL.replace(b"Accept:", b"Nexus-User-Id: %b\r\nAccept:" % user)

    shape = shapes.Known(shapes.IN_REQUESTS).learn(sent(b"ann"), meaning=1, table=None)
    assert shape.fit(sent(b"bob@example.com"))[2] == b"bob@example.com"
    assert READER.read_request(sent(b"bob@example.com"))[1][lines.USER] == b"bob@example.com"
    for odd in (b"", b"a b", b"a\tb", b"\xc3\xa4", b"x" * 257):
        assert shape.fit(sent(odd)) is None
    assert READER.read_request(MODEL.replace(b"Accept:", b"Nexus-User-Id: a\r\nNexus-User-Id: b\r\nAccept:")) is None


@pytest.mark.parametrize(
    "data",
    [
        b"", MODEL[:-1], MODEL + b"P", MODEL[:40], MODEL.replace(b"Accept", b"accept"), MODEL.replace(b"X-Last: 1", b"X-Last: 2"),
        HEAD % (b"", TRACE, b"2", b"{}"), HEAD % (b".", TRACE, b"2", b"{}"), HEAD % (b"..", TRACE, b"2", b"{}"),
        HEAD % (b"a b", TRACE, b"2", b"{}"), HEAD % (b"a" * 257, TRACE, b"2", b"{}"), HEAD % (b"a\nb", TRACE, b"2", b"{}"),
        HEAD % (b"a\r\nx: y", TRACE, b"2", b"{}"), HEAD % (b"a", b"0", b"2", b"{}"), HEAD % (b"a", TRACE, b"", b""),
        HEAD % (b"a", TRACE, b"-2", b"{}"), HEAD % (b"a", TRACE, b"+2", b"{}"), HEAD % (b"a", TRACE, b" 2", b"{}"),
        HEAD % (b"a", TRACE, b"0" * 5000 + b"2", b"{}"), HEAD % (b"a", TRACE, b"2, 2", b"{}"),
        HEAD % (b"a", TRACE, b"2\r\nContent-Length: 2", b"{}"), HEAD % (b"a", TRACE, b"2\r", b"{}"),
        HEAD % (b"a", TRACE, b"20000", b"x" * 20000),
    ],
)  # fmt: skip
def test_anything_else_does_not_fit(data):
    assert SHAPE.fit(data) is None


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_whatever_fits_is_read_alike_line_by_line(data):
    changed = bytearray(MODEL)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\r\n", b"\r", b"5"])
        )
    fit = SHAPE.fit(bytes(changed))
    if fit is None:
        return
    first, fields, onward, body = READER.read_request(bytes(changed))
    _, before, same, _ = READER.read_request(MODEL)
    assert (first, onward) == (b"POST /agents/a/run HTTP/1.1", same)
    assert fit == (fields[lines.SESSION], fields[lines.TRACE], None, body)
    fixed = (lines.HOST, lines.AUTHORIZATION, lines.ACCEPT)
    assert [fields[kind] for kind in fixed] == [before[kind] for kind in fixed]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([b"Nexus-Session-Id: a", b"nexus-session-id:b", b"traceparent:\tx", b"x:y", b"X: y "]), max_size=3)
)
@example([b"Nexus-Session-Id:a"])
def test_what_is_learnt_fits_itself_or_nothing(extra):
    data = (
        b"".join(line + b"\r\n" for line in (b"POST /agents/a/run HTTP/1.1", b"Host: h", *extra, b"Content-Length: 0")) + b"\r\n"
    )
    found = READER.read_request(data)
    if found is None:
        return
    shape = shapes.Known(shapes.IN_REQUESTS).learn(data, meaning=1, table=None)
    if shape is not None and (fit := shape.fit(data)) is not None:
        assert fit[0] == found[1][lines.SESSION]


def test_a_connection_that_carries_many_heads_learns_seldom_and_shapes_are_shared_and_bounded():
    assert sum(shapes.is_worth_learning(misses) for misses in range(1, 1001)) < 40
    known: shapes.Known[int] = shapes.Known(shapes.IN_REQUESTS)
    shape = known.learn(MODEL, meaning=1, table=known)
    assert known.learn(HEAD % (b"other", TRACE, b"0", b""), meaning=2, table=known) is shape
    assert known.learn(MODEL, meaning=3, table=object()) is not shape
    for n in range(5000):
        known.learn(MODEL.replace(b"X-Last: 1", b"X-Last: %d" % n), meaning=n, table=known)
    assert len(known._shapes) <= 4096


def test_answers_have_gaps_for_the_length_and_for_what_the_run_used():
    answer = b"HTTP/1.1 200 OK\r\nNexus-Session-Id: a\r\nNexus-Usage: cpu_s=%b\r\nContent-Length: 2\r\n\r\n{}"
    pieces, tail = shapes.cut(answer % b"0.5", shapes.IN_ANSWERS)
    assert [kind for _, kind in pieces] == [lines.USAGE, lines.LENGTH]
    assert pieces[0][0] == b"HTTP/1.1 200 OK\r\nNexus-Session-Id: a\r\nNexus-Usage: "
    assert tail == b"\n\r\n"
    shape = shapes.Shape(pieces, tail, meaning=1, table=None)
    assert shape.fit(answer % b"0.125") == (None, None, b"cpu_s=0.125", b"{}")
    for odd in (b"", b"1e9", b"-1", b"1,wall_s=2", b"1" * 30):
        assert shape.fit(answer % odd) is None
        assert READER.read_answer(answer % odd) is None
    twice = (answer % b"1").replace(b"Content", b"Nexus-Usage: cpu_s=1\r\nContent")
    assert READER.read_answer(twice) is None
    assert READER.read_answer(answer % b"0.25") == (200, [], b"{}")


def test_idle_connections_keep_no_table_that_is_not_in_force_any_more(tmp_path):
    class Table(routes.RouteTable):
        """One that can be watched."""

    async def play():
        node = home.Home(tmp_path)
        node.run.mkdir()
        here = process.build_world(Settings(home=node))
        old = Table()
        gone = weakref.ref(old)
        here.swap(old)
        client = server.ClientConnection(here, inside=False)
        here.connections.add(client)
        client.shape = here.requests.learn(MODEL, meaning=old, table=old)
        here.swap(routes.RouteTable())
        del old
        gc.collect()
        assert (client.shape, gone()) == (None, None)

    asyncio.run(play())
