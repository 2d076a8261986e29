"""Bodies with bytes beside their JSON: any bytes come back, and what was cut or forged is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.wire import blobs


@given(st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=99)), max_size=9))
def test_blobs_come_back_as_they_were_in_any_order(given: list[tuple[str, bytes]]) -> None:
    packer = blobs.Packer()
    body = packer.pack({"blobs": [packer.add(*one) for one in given]})
    assert blobs.is_packed(body)
    found = blobs.Unpacker(body)
    assert [found.take(entry) for entry in reversed(found.head["blobs"])] == list(reversed(given))


@pytest.mark.parametrize("body", [b"", b"{}", b"\0", b"\0\0\0\0\0", b"\0\0\0\0\3{}", b"\0\xff\xff\xff\xff{}", b"\0\0\0\0\2{]"])
def test_what_is_no_such_body_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        _ = blobs.Unpacker(body).head


@pytest.mark.parametrize(
    "entry",
    [["k", 0, 4], ["k", -1, 1], ["k", 0, -1], ["k", 3, 1], ["k", True, 1], ["k", 0, 1.0], [1, 0, 1], ["k", 0], "k01x", None, {}],
)
def test_a_blob_that_is_not_in_the_body_is_refused(entry: object) -> None:
    packer = blobs.Packer()
    packer.add("k", b"abc")
    with pytest.raises((ValueError, TypeError)):
        blobs.Unpacker(packer.pack({})).take(entry)
