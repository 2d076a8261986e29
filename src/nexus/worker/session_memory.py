"""Gets a zygote's memory ready to be shared: what its children write to is copied for each, page by page, and a fork copies the
tables of all of it.
"""

import gc
import sys
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType
from typing import Any

_GRAIN, _LARGEST_SMALL, _POOL, _MOST_FILLING = 16, 512, 14_000, 40_000  # of Objects/obmalloc.c, Python 3.10 and later
_LARGEST_LARGE, _IN_ORDER = 4096, 4
_KNOW_CODE = frozenset({"torch", "numba"})  # compilers that remember functions by the code they had


def watch(work: Callable[[], None], seen: set[CodeType]) -> None:
    """Do it, and note whose code ran."""

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            seen.add(frame.f_code)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)


def gather(codes: set[CodeType]) -> None:
    """Code that every session runs, side by side. Each call counts a reference in its code, so the page that it lies on is
    copied, and code lies where its module was loaded: a copied page for each function. The copies equal what they replace.
    """
    if not _KNOW_CODE.isdisjoint(sys.modules):
        return
    functions = [one for one in gc.get_objects() if type(one) is FunctionType and one.__code__ in codes]
    filling = fill()
    made: dict[int, CodeType] = {}
    for function in functions:
        function.__code__ = _copy(function.__code__, codes, made)
    del filling


def _copy(code: CodeType, codes: set[CodeType], made: dict[int, CodeType]) -> CodeType:
    """With the functions that it defines in turn. `made` is by identity: code of two files may be equal."""
    if id(code) not in made:
        inner = tuple(_copy(one, codes, made) if isinstance(one, CodeType) and one in codes else one for one in code.co_consts)
        made[id(code)] = code.replace(co_consts=inner)
    return made[id(code)]


def settle() -> list[list[bytes]]:
    """Objects that are there by now are there for good: no collection touches (and so copies) their memory again.

    What is given back fills the holes between them, and is to be kept: what a session allocates then lies together in new pages,
    instead of costing the copy of an old one each.

    The memory is not folded into huge pages, though a fork would copy its tables 0.7 ms sooner: sessions write here and there in
    all of it, so that each has 512 entries of its own for every huge page, and whoever walks a page's users (DAMON, reclaim,
    compaction) walks them all, while forks wait for its lock.
    """
    gc.collect()
    filling = fill()
    gc.freeze()
    gc.disable()
    return filling


def fill() -> list[list[bytes]]:
    """Every hole between objects, for as long as this is kept."""
    small = [_fill(size) for size in range(_GRAIN, _LARGEST_SMALL + 1, _GRAIN)]
    return [*small, *[_fill_large(size) for size in range(_LARGEST_LARGE, _LARGEST_SMALL, -_GRAIN)]]


def _fill_large(size: int) -> list[bytes]:
    """The same for chunks of the C library: until they come one after the other from the end of the heap."""
    kept: list[bytes] = []
    length, last, in_order = size - sys.getsizeof(b"") - 8, 0, 0
    while in_order < _IN_ORDER and len(kept) < _MOST_FILLING:
        kept.append(bytes(length))
        at = id(kept[-1])
        in_order, last = in_order + 1 if at - last == size else 0, at
    return kept[:-_IN_ORDER]  # those came from the end of the heap and go back to it


def _fill(size: int) -> list[bytes]:
    """Objects of one size class of Python's allocator until they come one after the other: from a pool that was empty."""
    kept: list[bytes] = []
    length, last, in_order = max(0, size - sys.getsizeof(b"")), 0, 0
    while in_order * size < _POOL and len(kept) < _MOST_FILLING:
        kept.append(bytes(length))
        at = id(kept[-1])
        in_order, last = in_order + 1 if at - last == size else 0, at
    return kept
