"""Which sessions make room: the longest idle ones, never one that somebody is connected to."""

from dataclasses import dataclass, field
from pathlib import Path

from nexus.core.sessions import SessionPhase
from nexus.drivers.process import session_room

ENOUGH, SHORT = session_room.Memory(100, 50), session_room.Memory(100, 5)


@dataclass
class One:
    name: str
    active_at: float
    phase: SessionPhase = SessionPhase.LIVE
    busy: bool = False
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.path = Path(f"/run/s/{self.name}.sock")


def names(found: list[One]) -> str:
    return "".join(one.name for one in found)


def test_a_tenth_stays_free_and_the_longest_idle_go_first() -> None:
    residents = [One("a", 5), One("b", 1, SessionPhase.FROZEN), One("c", 3), One("d", 0, busy=True), One("e", 2)]
    connected = {"/run/s/e.sock": 1}
    assert names(session_room.choose_to_stop(residents, connected, alive=5, most=4, memory=ENOUGH)) == "b"
    assert names(session_room.choose_to_stop(residents, connected, alive=5, most=3, memory=ENOUGH)) == "bc"
    assert names(session_room.choose_to_stop(residents, connected, alive=5, most=100, memory=ENOUGH)) == ""


def test_short_memory_stops_idle_sessions_however_few_there_are() -> None:
    residents = [One("a", 2), One("b", 1), One("c", 0, SessionPhase.SAVED)]
    assert names(session_room.choose_to_stop(residents, {}, alive=2, most=100, memory=SHORT)) == "ba"
    assert names(session_room.choose_to_stop(residents, {"/run/s/b.sock": 1}, alive=2, most=100, memory=SHORT)) == "a"


def test_saved_sessions_are_forgotten_beyond_a_number() -> None:
    residents = [One(name, at, SessionPhase.SAVED) for at, name in enumerate("abcd")]
    assert names(session_room.choose_to_forget(residents, most=2)) == "ab"
    assert names(session_room.choose_to_forget(residents, most=4)) == ""
    residents[0].busy = True
    assert names(session_room.choose_to_forget(residents, most=2)) == "bc"


def test_memory_is_read_as_the_kernel_tells_it() -> None:
    assert session_room.read_memory("MemTotal:  100 kB\nMemAvailable:  7 kB\n").is_low
    assert not session_room.read_memory("MemTotal:  100 kB\nMemAvailable:  9 kB\n").is_low
    assert not session_room.read_memory("nonsense").is_low
    assert session_room.read_memory().total > 2**20
