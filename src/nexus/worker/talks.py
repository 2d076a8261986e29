"""What is said to the door, apart from how: a generator asks one call at a time, and is driven by a loop or by a plain thread."""

from collections.abc import Generator
from typing import TypeVar

from nexus.core import errors
from nexus.kit import http_client
from nexus.worker import door as doors

T = TypeVar("T")
# (method, path, body) out, the answer in; an error of the door is thrown in.
Talk = Generator[tuple[str, str, bytes], http_client.Answer, T]


async def say(door: doors.Door, talk: Talk[T]) -> T:
    try:
        wanted = next(talk)
        while True:
            try:
                answer = await door.call(*wanted)
            except errors.NexusError as error:
                wanted = talk.throw(error)
            else:
                wanted = talk.send(answer)
    except StopIteration as done:
        result: T = done.value
        return result


def say_blocking(door: doors.Door, talk: Talk[T]) -> T:
    """The same for code in a thread without an event loop."""
    try:
        wanted = next(talk)
        while True:
            try:
                answer = door.call_blocking(*wanted)
            except errors.NexusError as error:
                wanted = talk.throw(error)
            else:
                wanted = talk.send(answer)
    except StopIteration as done:
        result: T = done.value
        return result
