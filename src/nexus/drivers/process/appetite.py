"""Who uses much of the processor, told from what it has used so far at one look after another. Pure."""

from dataclasses import dataclass, field

_MUCH = 0.4
_OF_LIMIT = 0.8
_LITTLE = 0.5
_LOOKS = 2
_CALM_S = 1.0


@dataclass(slots=True)
class Appetite:
    """What one session was seen to use, in processors. Whether it is to give way: after two looks in a row at which it used much,
    until it used less than half as much for a second. Who has half a processor has it in turns of 50 ms, one look tells little.
    """

    gives_way: bool = False
    used_s: float = 0.0
    at: float = 0.0
    _looks: int = field(default=0, init=False)
    _began: tuple[float, float] = field(default=(0.0, 0.0), init=False)

    def judge(self, used_s: float, now: float, much: float) -> bool:
        since, spent = now - self.at, used_s - self.used_s
        self.at, self.used_s = now, used_s
        self._looks = self._looks + 1 if since > 0 and spent >= much * since else 0
        began_s, began = self._began
        if not self.gives_way:
            self.gives_way = self._looks >= _LOOKS
            self._began = (used_s, now)
        elif now - began >= _CALM_S:
            self.gives_way = used_s - began_s >= much * _LITTLE * (now - began)
            self._began = (used_s, now)
        return self.gives_way


def much_of(cpu_millis: int | None) -> float:
    """From how many processors on it is much, for who may have so many thousandths of one."""
    return _MUCH if cpu_millis is None else min(_MUCH, cpu_millis / 1000 * _OF_LIMIT)
