"""A list with one chosen item; it shows as many items as there is room for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

#: How far a key moves in a list that shows so many lines; more than all: to its end.
_MOVES: dict[str, Callable[[int], int]] = {
    "up": lambda _: -1,
    "k": lambda _: -1,
    "down": lambda _: 1,
    "j": lambda _: 1,
    "page up": lambda lines: -lines,
    "page down": lambda lines: lines,
    "home": lambda _: -(1 << 30),
    "g": lambda _: -(1 << 30),
    "end": lambda _: 1 << 30,
    "G": lambda _: 1 << 30,
}


def moves(key: str, lines: int) -> int:
    """Return how far a key moves, in lines; 0: the key does not move."""
    return _MOVES[key](max(1, lines)) if key in _MOVES else 0


@dataclass(slots=True)
class Selection(Generic[T]):
    """What is chosen stays chosen while the list changes around it;
    where it is gone, its neighbour is.
    """

    #: What an item is known by.
    key: Callable[[T], Hashable]
    chosen: Hashable = None
    #: Where it was seen last, and the first line that is shown.
    place: int = 0
    first: int = 0
    #: How many lines there were room for.
    lines: int = 1

    def settle(self, items: Sequence[T]) -> T | None:
        """Return what is chosen of the items that there are now; None: there are none."""
        if not items:
            return None
        # Nothing is chosen yet: the first, whichever that is.
        if self.chosen is not None:
            places = (place for place, item in enumerate(items) if self.key(item) == self.chosen)
            self.place = next(places, min(self.place, len(items) - 1))
        else:
            self.place = 0
        return items[self.place]

    def move(self, items: Sequence[T], by: int) -> None:
        """Choose another."""
        self.settle(items)
        if items:
            self.place = min(len(items) - 1, max(0, self.place + by))
            self.chosen = self.key(items[self.place])

    def window(self, items: Sequence[T], lines: int) -> Sequence[T]:
        """Return those that are shown in so many lines: what is chosen is among them."""
        self.settle(items)
        self.lines = max(1, lines)
        self.first = min(self.first, max(0, len(items) - self.lines), self.place)
        self.first = max(self.first, self.place - self.lines + 1)
        return items[self.first : self.first + lines]
