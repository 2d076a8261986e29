"""Which answers are compressed, and what a compressed body may be."""

import gzip
import zlib

import pytest
from backports import zstd

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
    ("value", "chosen"),
    [
        (b"gzip", b"gzip"), (b"GZIP;q=0.5", b"gzip"), (b"br, *", b"zstd"), (b"*;q=0", None), (b"gzip;q=0, *;q=0", None),
        (b"identity", None), (b"", None), (None, None), (b"gzip;q=x", None), (b"x-gzip", b"gzip"), (b"gzip; q=0.001", b"gzip"),
        (b"gzip, deflate, br, zstd", b"zstd"), (b"zstd;q=0.5, gzip;q=0.9", b"gzip"), (b"zstd;q=0, *", b"gzip"),
    ],
)  # fmt: skip
def test_the_coding_that_a_client_likes_best(value, chosen):
    assert coding.choose(value) == chosen


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


PACKERS = {b"gzip": gzip.compress, b"zstd": zstd.compress}


@pytest.mark.parametrize("name", PACKERS)
def test_an_answer_comes_out_as_it_went_in(name):
    one = coding.Compressor(stream=False, coding=name)
    made = b"".join([one.feed(b"hello " * 5000), one.feed(b"there " * 5000), one.end()])
    assert len(made) < 600
    assert {b"gzip": gzip.decompress, b"zstd": zstd.decompress}[name](made) == b"hello " * 5000 + b"there " * 5000
    assert dict(one.headers([JSON]))[b"Content-Encoding"] == name


@pytest.mark.parametrize("name", PACKERS)
def test_a_body_is_expanded_piece_by_piece(name):
    data = PACKERS[name](b"hello " * 1000)
    one = coding.Expander(10_000, coding=name)
    assert b"".join(one.feed(data[n : n + 7]) for n in range(0, len(data), 7)) == b"hello " * 1000
    one.end()


@pytest.mark.parametrize("name", PACKERS)
def test_a_bomb_gives_one_byte_too_many_and_no_more(name):
    one = coding.Expander(10_000, coding=name)
    made = one.feed(PACKERS[name](b"\0" * 50_000_000))
    assert len(made) == 10_001
    assert one.feed(b"more") == b""
    one.end()


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("bad", ["plain", "trailing", "two", "late"])
def test_what_is_not_one_stream_is_refused(name, bad):
    pack = PACKERS[name]
    sent = {"plain": b"not packed at all", "trailing": pack(b"a") + b"x", "two": pack(b"a") + pack(b"b"), "late": b"x"}[bad]
    one = coding.Expander(100, coding=name)
    if bad == "late":
        one.feed(pack(b"a"))
    with pytest.raises(errors.Invalid) as refused:
        one.feed(sent)
    assert refused.value.code == "body.coding_invalid"


@pytest.mark.parametrize("name", PACKERS)
def test_a_body_cut_short_is_refused(name):
    one = coding.Expander(100, coding=name)
    one.feed(PACKERS[name](b"hello")[:-3])
    with pytest.raises(errors.Invalid, match=name.decode()):
        one.end()


def test_a_window_that_would_take_much_memory_is_refused():
    greedy = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    with pytest.raises(errors.Invalid):
        coding.Expander(100, coding=b"zstd").feed(greedy.compress(b"a" * 9_000_000, greedy.FLUSH_BLOCK))


def test_other_codings_are_refused_by_name():
    assert coding.decide_expander(head(content_encoding=b"identity"), 10) is None
    assert coding.decide_expander(head(content_encoding=b"GZIP"), 10) is not None
    assert coding.decide_expander(head(content_encoding=b"zstd"), 10) is not None
    with pytest.raises(errors.Invalid, match="'br'"):
        coding.decide_expander(head(content_encoding=b"br"), 10)
