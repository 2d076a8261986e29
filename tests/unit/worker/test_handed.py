"""A listening socket whose connections are handed in, under an event loop that knows nothing of it."""

import asyncio
import socket

from nexus.worker import handed


async def test_an_event_loop_serves_connections_that_are_handed_in() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener = handed.take(theirs.detach(), handed=True)
    listener.setblocking(False)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(echo, sock=listener):
        for number in range(3):
            client, given = socket.socketpair()
            with given:
                socket.send_fds(ours, [b"+"], [given.fileno()])
            reader, writer = await asyncio.open_connection(sock=client)
            writer.write(b"%d\n" % number)
            assert await reader.readline() == b"%d\n" % number
            writer.close()
            await writer.wait_closed()
    ours.close()
