"""The last piece of the way out: loopback ports in a box without a network, each connection led to the broker's unix socket.

`PORT` is the broker itself (HTTP proxy and SOCKS5). A pinned port stands for one named host: what connects there is led to that
host with no word of a proxy, as the box's hosts file says. A process of its own in the box, beside the worker and no more
trusted than it. Blocking threads, few and small.
"""

import _socket
import _thread
import fcntl
import os
import select

PORT = 3128
_MOST = 200
_STACK = 256 * 1024
_CHUNK = 64 * 1024
_ABOVE = 64  # listeners wait up there until the descriptors below are settled
_GREETING, _ACCEPTED = b"\x05\x01\x00", b"\x05\x00"
_REPLY = 10

TYPE_CHECKING = False
if TYPE_CHECKING:
    Listener = tuple[_socket.socket, str, int]  # and the host and port it is pinned to; "" for the proxy itself


def listen(pins: "list[list[str | int]]") -> "list[Listener]":
    """Every port, before the worker can ask for it, and while low numbers may still be had."""
    listeners = [(_bind("127.0.0.1", PORT), "", 0)]
    for host, address, port in pins:
        listeners.append((_bind(str(address), int(port)), str(host), int(port)))
    return listeners


def settle(listeners: "list[Listener]", first: int) -> "list[Listener]":
    """The same listeners as descriptors `first`, `first` + 1, …"""
    settled = []
    for number, (listener, host, port) in enumerate(listeners, first):
        os.dup2(listener.detach(), number, inheritable=False)
        settled.append((_socket.socket(fileno=number), host, port))
    return settled


def serve(listeners: "list[Listener]", broker: str) -> None:
    """Never returns. While too many connections are open, new ones wait in the kernel."""
    _thread.stack_size(_STACK)
    rooms = [_thread.allocate_lock() for _ in range(_MOST)]
    ready = select.poll()
    by_number = {listener[0].fileno(): listener for listener in listeners}
    for number in by_number:
        ready.register(number, select.POLLIN)
    while True:
        for number, _ in ready.poll():
            _take(by_number[number], broker, rooms)


def _take(listener: "Listener", broker: str, rooms: "list[_thread.LockType]") -> None:
    room = next((room for room in rooms if room.acquire(blocking=False)), None)
    if room is None:
        room = rooms[0]
        room.acquire()
    accepting, host, port = listener
    try:
        fd, _ = accepting._accept()  # type: ignore[attr-defined]  # the plain socket's own accept
    except OSError:  # it left again
        room.release()
        return
    client = _socket.socket(fileno=fd)
    client.setblocking(True)
    upstream = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        upstream.connect(broker)
    except OSError:  # no supervisor for a moment: the caller sees a closed connection and may try again
        client.close()
        upstream.close()
        room.release()
        return
    _thread.start_new_thread(_carry, (client, upstream, room, host, port))


def _carry(client: _socket.socket, upstream: _socket.socket, room: "_thread.LockType", host: str, port: int) -> None:
    if not host or _asked(upstream, host, port):
        other = _thread.allocate_lock()
        other.acquire()
        _thread.start_new_thread(_pump, (upstream, client, other))
        _pump(client, upstream, None)
        other.acquire()
    client.close()
    upstream.close()
    room.release()


def _asked(upstream: _socket.socket, host: str, port: int) -> bool:
    """Whether the broker has connected to the host, asked in SOCKS5."""
    name = host.encode()
    try:
        upstream.sendall(_GREETING)
        if _read(upstream, 2) != _ACCEPTED:
            return False
        upstream.sendall(b"\x05\x01\x00\x03" + bytes((len(name),)) + name + port.to_bytes(2, "big"))
        return _read(upstream, _REPLY)[1:2] == b"\x00"
    except OSError:
        return False


def _read(source: _socket.socket, count: int) -> bytes:
    read = b""
    while len(read) < count and (piece := source.recv(count - len(read))):
        read += piece
    return read


def _bind(address: str, port: int) -> _socket.socket:
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    listener.bind((address, port))
    listener.listen(_MOST)
    listener.setblocking(False)
    above = fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    listener.close()
    return _socket.socket(fileno=above)


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
