"""One dispatcher with its way to the gateways and its ears: inside control, or as the process `nexus.apps.dispatcher`.

Also how a host's control and its dispatchers come to the same service token, without asking each other.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.core import errors, ids
from nexus.kit import clock as clocks
from nexus.kit import keys, private_file
from nexus.kit.home import Home
from nexus.stores.postgres import task_listener, task_store
from nexus.tasks import dispatcher, door
from nexus.tasks.settings import TaskSettings

CHANNELS = (task_listener.CHANNEL_QUEUE, task_listener.CHANNEL_CANCEL, task_listener.CHANNEL_PAUSE)


def build(
    engine: AsyncEngine,
    *,
    token: str,
    door_sockets: Callable[[], Sequence[Path]],
    clock: clocks.Clock,
    settings: TaskSettings,
) -> dispatcher.Dispatcher:
    """A dispatcher under an owner of its own; whoever enters it must run a `Listener` of that owner beside it."""
    return dispatcher.Dispatcher(
        store=task_store.PostgresTaskStore(engine),
        door=door.GatewayDoor(sockets=door_sockets, token=token),
        owner=ids.new_id("own"),
        clock=clock,
        settings=settings,
    )


def hear(runner: dispatcher.Dispatcher, channel: str, payload: str) -> None:
    """What a listener's `receive` means for a dispatcher. An empty channel: (re)connected, anything may have been missed."""
    if channel in ("", task_listener.CHANNEL_QUEUE):
        if payload:
            runner.expect(task_listener.read_delay(payload))
        else:
            runner.wake()
    elif channel == task_listener.CHANNEL_CANCEL:
        runner.cancel(payload)
    elif channel == task_listener.CHANNEL_PAUSE:
        runner.pause(payload)


def door_sockets(home: Home, gateways: int) -> Callable[[], list[Path]]:
    return lambda: [home.door_socket(number) for number in range(gateways)]


def service_token(home: Home) -> str:
    """What the dispatchers of this host show to its gateways: made by whoever asks first, in a file that only its owner reads.

    Raises `Unavailable` (`host.token_unusable`) when the file holds something else.
    """
    private_file.create_once(home.service_token, keys.new_key(keys.SERVICE_TOKEN).encode() + b"\n")
    token = home.service_token.read_text("ascii", "replace").strip()
    if not (token.startswith(f"{keys.SERVICE_TOKEN}_") and keys.has_key_shape(token)):
        raise errors.Unavailable(
            f"{home.service_token} does not hold a service token",
            code="host.token_unusable",
            cause="the file was changed or cut off",
            next_step="stop the host and start it again: nexus down && nexus up -d",
        )
    return token
