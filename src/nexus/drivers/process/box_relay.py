"""The last piece of the way out: a loopback port in a box without a network, each connection led to the broker's unix socket.

A process of its own in the box, beside the worker and no more trusted than it. Blocking threads, few and small.
"""

import _socket
import _thread

PORT = 3128
_MOST = 200
_STACK = 256 * 1024
_CHUNK = 64 * 1024


def listen() -> _socket.socket:
    """The port, before the worker can ask for it."""
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", PORT))
    listener.listen(_MOST)
    return listener


def serve(listener: _socket.socket, broker: str) -> None:
    """Never returns. While too many connections are open, new ones wait in the kernel."""
    _thread.stack_size(_STACK)
    rooms = [_thread.allocate_lock() for _ in range(_MOST)]
    while True:
        room = next((room for room in rooms if room.acquire(blocking=False)), None)
        if room is None:
            room = rooms[0]
            room.acquire()
        fd, _ = listener._accept()  # type: ignore[attr-defined]  # the plain socket's own accept
        client = _socket.socket(fileno=fd)
        client.setblocking(True)
        upstream = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            upstream.connect(broker)
        except OSError:  # no supervisor for a moment: the caller sees a closed connection and may try again
            client.close()
            upstream.close()
            room.release()
            continue
        _thread.start_new_thread(_carry, (client, upstream, room))


def _carry(client: _socket.socket, upstream: _socket.socket, room: _thread.LockType) -> None:
    other = _thread.allocate_lock()
    other.acquire()
    _thread.start_new_thread(_pump, (upstream, client, other))
    _pump(client, upstream, None)
    other.acquire()
    client.close()
    upstream.close()
    room.release()


def _pump(source: _socket.socket, sink: _socket.socket, done: "_thread.LockType | None") -> None:
    try:
        while piece := source.recv(_CHUNK):
            sink.sendall(piece)
        sink.shutdown(_socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            try:  # noqa: SIM105
                end.shutdown(_socket.SHUT_RDWR)
            except OSError:
                pass
    if done is not None:
        done.release()
