"""Which request heads pass."""

import pytest

from nexus.core import errors
from nexus.gateway import http1

GOOD = [(b"host", b"localhost")]


def parse(headers=GOOD, *, method=b"POST", target=b"/agents/a/run", version="1.1"):
    return http1.parse_request(method=method, target=target, headers=list(headers), version=version, keep_alive=True)


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], 0),
        ([(b"content-length", b"0")], 0),
        ([(b"content-length", b"17")], 17),
        ([(b"transfer-encoding", b"chunked")], None),
        ([(b"transfer-encoding", b"Chunked")], None),
    ],
)
def test_how_long_a_body_is(headers, length):
    assert parse([*GOOD, *headers]).length == length


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"host", b"a"), (b"host", b"a")],
        [(b"host", b"a/b")],
        [(b"host", b"127.0..0.0.1")],
        [(b"host", b".a")],
        [(b"host", b"a" * 254)],
        [(b"host", b".")],
        [(b"host", b"a:port")],
        [*GOOD, (b"content-length", b"")],
        [*GOOD, (b"content-length", b"1 2")],
        [*GOOD, (b"content-length", b"9" * 16)],
        [*GOOD, (b"content-length", "٣".encode())],
        [*GOOD, (b"content-length", b"1"), (b"transfer-encoding", b"chunked")],
        [*GOOD, (b"transfer-encoding", b"gzip, chunked")],
        [*GOOD, (b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")],
    ],
)
def test_heads_that_two_programs_could_read_differently_are_refused(headers):
    with pytest.raises(errors.Invalid) as caught:
        parse(headers)
    assert caught.value.code == "request.malformed"


@pytest.mark.parametrize("target", [b"http://a/", b"*", b"a", b"", b"/\xc3\xa9", b"/a b", b"/\x7f"])
def test_targets_that_are_not_an_absolute_path_are_refused(target):
    with pytest.raises(errors.Invalid):
        parse(target=target)


def test_options_may_ask_about_the_server_and_http_1_0_needs_no_host():
    assert parse(method=b"OPTIONS", target=b"*").path == b"*"
    old = parse([], version="1.0")
    assert (old.modern, old.keep_alive) == (False, False)
    with pytest.raises(errors.Invalid):
        parse([(b"transfer-encoding", b"chunked")], version="1.0")


@pytest.mark.parametrize("path", [b"/a//b", b"/a/../b", b"/a/.", b"/..", b"/a%2Fb", b"/a%2e%2e", b"/a\\b", b"/a;b", b"/a%00"])
def test_disguised_paths(path):
    assert http1.is_disguised(path)


@pytest.mark.parametrize("path", [b"/", b"/v1/agents/a.b", b"/a/..b", b"/a/b...", b"/a%20b", b"/.well-known/x"])
def test_plain_paths(path):
    assert not http1.is_disguised(path)


def test_the_names_a_connection_header_claims():
    assert http1.connection_names(b"Keep-Alive") == frozenset()
    assert http1.connection_names(b"close, X-One ,x-two") == {b"close", b"x-one", b"x-two"}
