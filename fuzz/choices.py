"""Turns fuzzed bytes into decisions, so that an input which is no document can still make a well-formed, wrong one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

Tree = Any
"""What JSON and MessagePack can say: None, bool, int, float, str, bytes, list, dict."""

_DEPTH_OF_BOMB: Final = 2000
_DEPTH_OF_PLACES: Final = 16
_MUTATIONS_MAX: Final = 4
_WEIGHT_MAX: Final = 200_000


class Choices:
    """Reads decisions from the front of the data; when it is used up every decision is 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        """One byte."""
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1]

    def below(self, bound: int) -> int:
        """A number from 0 to ``bound`` - 1; 0 when there is none."""
        if bound <= 1:
            return 0
        number = (
            self.byte() if bound <= 256 else int.from_bytes((self.byte(), self.byte(), self.byte()), "big")
        )
        return number % bound

    def some(self) -> bytes:
        """A length byte's worth of bytes."""
        length = self.byte()
        taken = self._data[self._at : self._at + length]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        """All that is left."""
        taken = self._data[self._at :]
        self._at = len(self._data)
        return taken


def mutated(tree: Tree, choices: Choices) -> Tree:
    """A copy of a document that differs from it in one to four places."""
    for _ in range(1 + choices.below(_MUTATIONS_MAX)):
        places = list(_places(tree, ()))
        changed = _replaced(tree, places[choices.below(len(places))], choices)
        if _weight(changed) > _WEIGHT_MAX:
            break
        tree = changed
    return tree


def _weight(tree: Tree) -> int:
    """About how many bytes a document has when written, counted no further than matters."""
    total, pending = 0, [tree]
    while pending and total <= _WEIGHT_MAX:
        item = pending.pop()
        total += len(item) + 1 if isinstance(item, (str, bytes)) else 1
        if isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    return total


def _places(tree: Tree, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    yield path
    if len(path) == _DEPTH_OF_PLACES:
        return
    if isinstance(tree, dict):
        for key in tree:
            yield from _places(tree[key], (*path, key))
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            yield from _places(item, (*path, index))


def _replaced(tree: Tree, path: tuple[str | int, ...], choices: Choices) -> Tree:
    if not path:
        return _value(tree, choices)
    step, rest = path[0], path[1:]
    if isinstance(tree, dict):
        copy = dict(tree)
        if not rest and choices.below(6) == 1:
            del copy[step]
        elif not rest and choices.below(6) == 1:
            copy[choices.some().decode("utf-8", "replace")] = copy.pop(step)
        else:
            copy[step] = _replaced(tree[step], rest, choices)
        return copy
    items = list(tree)
    index = int(step)
    if not rest and choices.below(6) == 1:
        del items[index]
    elif not rest and choices.below(6) == 1:
        items += [items[index]] * choices.byte()
    else:
        items[index] = _replaced(items[index], rest, choices)
    return items


def _value(  # noqa: C901, PLR0911  # a table of what else there is
    old: Tree, choices: Choices
) -> Tree:
    """Something else in place of a value: of its kind more often than not, and at the edges of it."""
    kind = choices.below(12)
    if kind < 6 and isinstance(old, str):
        return _text(old, choices)
    if kind < 6 and isinstance(old, bytes):
        return _bytes(old, choices)
    if kind < 6 and isinstance(old, (int, float)) and not isinstance(old, bool):
        return _number(choices)
    match kind:
        case 0 | 6:
            return _number(choices)
        case 1 | 7:
            return choices.some().decode("utf-8", "replace")
        case 2 | 8:
            return None
        case 3 | 9:
            return [old] * choices.below(64)
        case 4 | 10:
            return {choices.some().decode("utf-8", "replace"): old}
        case 5:
            return bool(choices.below(2))
        case _:
            bomb: Tree = old
            for _ in range(choices.below(2) * _DEPTH_OF_BOMB):
                bomb = [bomb]
            return bomb


def _number(choices: Choices) -> int | float:
    edges: tuple[int | float, ...] = (
        0, -1, 1, 255, 256, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**64 - 1, -(2**63),
        0.5, -0.0, 1e308, float("inf"), float("nan"), 253402300800.0,
    )  # fmt: skip
    chosen = choices.below(len(edges) + 1)
    return edges[chosen] if chosen < len(edges) else int.from_bytes(choices.some()[:8], "big")


def _text(old: str, choices: Choices) -> str:  # noqa: PLR0911  # likewise
    match choices.below(7):
        case 0:
            return choices.some().decode("utf-8", "replace")
        case 1:
            return old + choices.some().decode("latin-1")
        case 2:
            return old * choices.below(200)
        case 3:
            at = choices.below(len(old) + 1)
            return old[:at] + choices.some().decode("utf-8", "replace") + old[at + 1 :]
        case 4:
            return "../" * choices.below(8) + old
        case 5:
            return old.upper()
        case _:
            return "\x00\n\u202e\u0130" + old


def _bytes(old: bytes, choices: Choices) -> bytes:
    match choices.below(4):
        case 0:
            return choices.some()
        case 1:
            at = choices.below(len(old) + 1)
            return old[:at] + choices.some() + old[at + 1 :]
        case 2:
            return old[: choices.below(len(old) + 1)]
        case _:
            return old + bytes(choices.below(70_000))
