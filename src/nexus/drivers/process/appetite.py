"""Who uses much of the processor, told from what it has used so far at one look after another. Pure."""

from dataclasses import dataclass, field

_MUCH = 0.4
_OF_LIMIT = 0.8
_LITTLE = 0.5
_LOOKS = 2


@dataclass(slots=True)
class Appetite:
    """What one session was seen to use, in processors. Whether it is to give way: after two looks at which it used much, until
    one at which it used less than half as much."""

    gives_way: bool = False
    used_s: float = 0.0
    at: float = 0.0
    _looks: int = field(default=0, init=False)

    def judge(self, used_s: float, now: float, much: float) -> bool:
        since, self.at = now - self.at, now
        spent, self.used_s = used_s - self.used_s, used_s
        rate = spent / since if since > 0 else 0.0
        self._looks = self._looks + 1 if rate >= much else 0
        if self._looks >= _LOOKS:
            self.gives_way = True
        elif rate < much * _LITTLE:
            self.gives_way = False
        return self.gives_way


def much_of(cpu_millis: int | None) -> float:
    """From how many processors on it is much, for who may have so many thousandths of one."""
    return _MUCH if cpu_millis is None else min(_MUCH, cpu_millis / 1000 * _OF_LIMIT)
