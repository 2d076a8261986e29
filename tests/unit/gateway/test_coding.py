"""Which answers are compressed, and what a compressed body may be."""

import gzip
import zlib

import pytest

from nexus.core import errors
from nexus.gateway import coding, http1


def head(accept=b"gzip, deflate, br", *, method=b"POST", modern=True, **named):
    values = {name.replace("_", "-").encode(): value for name, value in named.items()}
    if accept is not None:
        values[b"accept-encoding"] = accept
    return http1.RequestHead(
        method=method, target=b"/", path=b"/", headers=[], named=values, length=0, modern=modern, keep_alive=True
    )  # fmt: skip


JSON = (b"content-type", b"application/json")


@pytest.mark.parametrize(
    ("value", "yes"),
    [
        (b"gzip", True), (b"GZIP;q=0.5", True), (b"br, *", True), (b"*;q=0", False), (b"gzip;q=0, *", False),
        (b"identity", False), (b"", False), (None, False), (b"gzip;q=x", False), (b"x-gzip", True), (b"gzip; q=0.001", True),
    ],
)  # fmt: skip
def test_who_takes_gzip(value, yes):
    assert coding.accepts_gzip(value) is yes


@pytest.mark.parametrize(
    ("request_head", "status", "headers", "length", "mode", "yes"),
    [
        (head(), 200, [JSON], 5000, "auto", True),
        (head(), 200, [JSON], None, "auto", True),
        (head(), 200, [(b"Content-Type", b"text/html; charset=utf-8")], 5000, "auto", True),
        (head(), 200, [(b"content-type", b"application/problem+json")], 5000, "auto", True),
        (head(), 200, [JSON], 100, "auto", False),
        (head(), 200, [JSON], 5000, "none", False),
        (head(b"identity"), 200, [JSON], 5000, "auto", False),
        (head(modern=False), 200, [JSON], 5000, "auto", False),
        (head(method=b"HEAD"), 200, [JSON], 5000, "auto", False),
        (head(), 206, [JSON], 5000, "auto", False),
        (head(), 200, [JSON, (b"content-encoding", b"br")], 5000, "auto", False),
        (head(), 200, [JSON, (b"cache-control", b"no-transform")], 5000, "auto", False),
        (head(), 200, [(b"content-type", b"image/png")], 5000, "auto", False),
        (head(), 200, [(b"content-type", b"application/gzip")], 5000, "auto", False),
        (head(), 200, [], 5000, "auto", False),
        (head(), 200, [(b"content-type", b"text/event-stream")], None, "auto", False),
        (head(), 200, [(b"content-type", b"text/event-stream")], None, "gzip", True),
    ],
)
def test_what_is_compressed(request_head, status, headers, length, mode, yes):
    found = coding.decide_compressor(request_head, status, headers, length, mode=mode)
    assert (found is not None) is yes


def test_each_event_of_a_stream_comes_out_at_once():
    one, reader = coding.Compressor(stream=True), zlib.decompressobj(31)
    for n in range(50):
        event = b"data: %d\n\n" % n
        assert reader.decompress(one.feed(event)) == event
    reader.decompress(one.end())
    assert reader.eof


def test_validators_say_no_more_than_they_may():
    made = dict(coding.Compressor(stream=False).headers([(b"etag", b'"a"'), (b"accept-ranges", b"bytes"), JSON]))
    assert made[b"etag"] == b'W/"a"'
    assert b"accept-ranges" not in made
    assert (made[b"Content-Encoding"], made[b"Vary"]) == (b"gzip", b"Accept-Encoding")


def test_a_body_is_expanded_piece_by_piece():
    data = gzip.compress(b"hello " * 1000)
    one = coding.Expander(10_000)
    assert b"".join(one.feed(data[n : n + 7]) for n in range(0, len(data), 7)) == b"hello " * 1000
    one.end()


def test_a_bomb_gives_one_byte_too_many_and_no_more():
    one = coding.Expander(10_000)
    made = one.feed(gzip.compress(b"\0" * 50_000_000))
    assert len(made) == 10_001
    assert one.feed(b"more") == b""
    one.end()


@pytest.mark.parametrize(
    "bad",
    [b"not gzip", gzip.compress(b"a") + b"trailing", gzip.compress(b"a") + gzip.compress(b"b")],
    ids=["plain", "trailing", "two members"],
)
def test_what_is_not_one_gzip_stream_is_refused(bad):
    with pytest.raises(errors.Invalid) as refused:
        coding.Expander(100).feed(bad)
    assert refused.value.code == "body.coding_invalid"


def test_a_body_cut_short_is_refused():
    one = coding.Expander(100)
    one.feed(gzip.compress(b"hello")[:-5])
    with pytest.raises(errors.Invalid, match="gzip"):
        one.end()


def test_other_codings_are_refused_by_name():
    assert coding.decide_expander(head(content_encoding=b"identity"), 10) is None
    assert coding.decide_expander(head(content_encoding=b"GZIP"), 10) is not None
    with pytest.raises(errors.Invalid, match="'br'"):
        coding.decide_expander(head(content_encoding=b"br"), 10)
