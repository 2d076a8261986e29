"""The reader of the short way is stricter than the parser of the long one, never laxer, and reads the same."""

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nexus.core import errors
from nexus.gateway import http1, lines, runs_door

READER = runs_door.build_reader()
HEAD = b"POST /agents/a/run HTTP/1.1\r\nHost: localhost\r\n"


def whole(*extra, body=b"{}", length=None):
    size = len(body) if length is None else length
    return HEAD + b"".join(line + b"\r\n" for line in extra) + b"Content-Length: %d\r\n\r\n" % size + body


class Long:
    """What the long way makes of the same bytes: headers, body and whether there was exactly one request."""

    def __init__(self, data):
        self.target, self.headers, self.body, self.done = b"", [], b"", 0
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.head = http1.parse_request(
            method=parser.get_method(), target=self.target, headers=self.headers, version=parser.get_http_version(),
            keep_alive=parser.should_keep_alive(),
        )  # fmt: skip

    def on_url(self, part):
        self.target += part

    def on_header(self, name, value):
        self.headers.append((name.lower(), value))

    def on_body(self, part):
        self.body += part

    def on_message_complete(self):
        self.done += 1


def test_a_plain_request_is_read_with_what_goes_on_and_what_does_not():
    first, fields, onward, body = READER.read_request(
        whole(
            b"Authorization: Bearer x", b"Nexus-Session-Id: s", b"Accept: */*", b"Cookie2: a", b"X-Mine: 1", b"Nexus-Tenant2: t",
            b"X-Forwarded-For: a", b"x_forwarded_for: a", b"Connection: keep-alive", b"Content-Type: application/json",
        )
    )  # fmt: skip
    assert first == b"POST /agents/a/run HTTP/1.1"
    assert fields[lines.AUTHORIZATION] == b"Bearer x"
    assert fields[lines.SESSION] == b"s"
    assert onward == [b"accept: */*\r\n", b"cookie2: a\r\n", b"x-mine: 1\r\n", b"content-type: application/json\r\n"]
    assert body == b"{}"


@pytest.mark.parametrize(
    "data",
    [
        whole(length=1), whole(length=3), whole() + b"P", whole(b"Transfer-Encoding: chunked"), whole(b"Expect: 100-continue"),
        whole(b"Upgrade: websocket"), whole(b"Connection: close"), whole(b"Connection: keep-alive, x"), whole(b"Host: b"),
        whole(b"Authorization: a", b"Authorization: b"), whole(b"Nexus-Session-Id: a", b"Nexus-Session-Id: b"),
        whole(b"Nexus-Session-Id: a b"), whole(b"Origin: http://a"), whole(b"Idempotency-Key: k"),
        whole(b"Content-Encoding: gzip"),
        whole(b"Nexus-Tenant: t"), whole(b" folded: x"), whole(b"x : y"), whole(b"x:\ty"), whole(b"x: y "), whole(b"x: y\x00"),
        whole(b"x: y\nz: 1"), whole(b"x: y\rz: 1"), whole(b"x: \xff"), whole(b"x"), whole(b": x"), whole(b"x: " + b"y" * 9000),
        whole(*[b"x: y"] * 70), whole(b"Content-Length: 2"), whole(b"Content-Type: a", b"Content-Type: a"),
        b"", HEAD, HEAD + b"\r\n",
        b"\r\n" + whole(), whole().replace(b"\r\n", b"\n"), whole(b"Trailer: x"), whole(b"TE: trailers"), whole(b"Cookie: a"),
    ],
)  # fmt: skip
def test_whatever_is_not_plain_is_left_to_the_long_way(data):
    assert READER.read_request(data) is None


odd = st.binary(min_size=1, max_size=40) | st.sampled_from(
    [
        b"x: y",
        b"Content-Length: 2",
        b"Content-Length: 02",
        b"Transfer-Encoding: chunked",
        b"Host: b",
        b"a\r\nb: c",
        b"x:y",
        b"x:  y",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(odd, max_size=4), st.binary(max_size=20))
@example([b"x:  y"], b"")
def test_what_it_reads_the_long_way_reads_alike(extra, body):
    data = whole(*extra, body=body)
    found = READER.read_request(data)
    if found is None:
        return
    first, fields, onward, read = found
    if not lines.is_plain_request_line(first):
        return
    long = Long(data)
    assert (long.done, long.body, long.head.length) == (1, read, len(read))
    for kind, name in ((lines.HOST, b"host"), (lines.AUTHORIZATION, b"authorization"), (lines.SESSION, b"nexus-session-id")):
        assert fields[kind] == long.head.named.get(name)
    passed = [tuple(line[:-2].split(b": ", 1)) for line in onward]
    assert all(header in long.headers for header in passed)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_request_changed_at_random_is_never_read_otherwise(data):
    original = bytearray(whole(b"Nexus-Session-Id: customer-1", b"Authorization: Bearer k", b"Accept: */*"))
    for _ in range(data.draw(st.integers(1, 3))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    sent = bytes(original)
    found = READER.read_request(sent)
    if found is None or not lines.is_plain_request_line(found[0]):
        return
    try:
        long = Long(sent)
    except errors.NexusError:
        return  # `express` asks `parse_request` too before anything of a new head is believed
    assert (long.done, long.body) == (1, found[3])


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n{}", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", b"HTTP/1.1 100 C\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 600 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nx: a\nb\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 500 No\r\nContent-Type: application/problem+json\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nNexus-Error-Code: a\r\nContent-Length: 2\r\n\r\n{}",
    ],
)  # fmt: skip
def test_an_answer_that_is_not_plain_is_left_to_the_long_way(answer):
    assert READER.read_answer(answer) is None


def test_an_answer_is_cleaned():
    status, onward, body = READER.read_answer(
        b"HTTP/1.1 201 Created\r\nSet-Cookie: a=b\r\nServer: x\r\nX-Mine: 1\r\nNexus-Version: 9\r\nAccess-Control-Max-Age: 1\r\n"
        b"Location: /x\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n{}"
    )
    assert (status, body) == (201, b"{}")
    assert onward == [b"x-mine: 1\r\n", b"content-type: application/json\r\n"]


def test_what_is_remembered_is_bounded():
    reader = runs_door.build_reader()
    for n in range(20_000):
        assert reader.read_request(whole(b"x-%d: y" % n)) is not None
    assert len(reader._requests) <= 8192
