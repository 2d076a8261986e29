"""What a batch of records looks like on the feed's line."""

import asyncio
import json

import pytest

from nexus.gateway import feed


class Line:
    def __init__(self):
        self.sent = b""

    def writelines(self, parts):
        self.sent += b"".join(parts)

    async def drain(self): ...


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 500])
def test_a_batch_is_one_line_whatever_pieces_it_is_sent_in(count):
    line = Line()
    asyncio.run(feed._send_batch(line, 7, [b'{"id":%d}' % number for number in range(count)]))
    assert line.sent.count(b"\n") == 1
    assert json.loads(line.sent) == {"records": [{"id": number} for number in range(count)], "batch": 7}
