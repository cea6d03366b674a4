"""The cheapest division of a network's steps into two sides: a minimum cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from itertools import pairwise


class Cut:
    """Costs of putting things on either side, and of separating them.

    References
    ----------
    E. A. Dinic, *Algorithm for solution of a problem of maximum flow in networks with power estimation*, Soviet
    Mathematics Doklady 11, 1970: the least cost is the largest flow.

    Examples
    --------
    >>> cut = Cut()
    >>> cut.place("a", 5, 1)
    >>> cut.place("b", 1, 2)
    >>> cut.separate("a", "b", 3)
    >>> cut.separate("b", "a", 3)
    >>> sorted(cut.second_side())
    ['a', 'b']
    """

    def __init__(self) -> None:
        self._room: dict[Hashable, dict[Hashable, int]] = {FIRST: {}, SECOND: {}}

    def place(self, who: Hashable, first: int, second: int) -> None:
        """Let it cost `first` to have `who` on the first side, `second` to have it on the second one."""
        self.separate(who, SECOND, first)
        self.separate(FIRST, who, second)

    def separate(self, one: Hashable, other: Hashable, cost: int) -> None:
        """Let it cost so much, not less than 0, to have `one` on the first side and `other` on the second one."""
        self._room.setdefault(one, {}).setdefault(other, 0)
        self._room.setdefault(other, {}).setdefault(one, 0)
        self._room[one][other] += cost

    def second_side(self) -> set[Hashable]:
        """What is on the second side of the cheapest division; of those that cost as much, the one with the fewest."""
        while levels := self._levels():
            self._fill(levels)
        side: set[Hashable] = {SECOND}
        waiting: list[Hashable] = [SECOND]
        while waiting:
            who = waiting.pop()
            for other in self._room[who]:
                if other not in side and self._room[other][who] > 0:
                    side.add(other)
                    waiting.append(other)
        return side - {SECOND}

    def _levels(self) -> dict[Hashable, int]:
        """How many steps away from the first side everything is; nothing if no way leads to the second side."""
        levels: dict[Hashable, int] = {FIRST: 0}
        waiting: deque[Hashable] = deque([FIRST])
        while waiting:
            who = waiting.popleft()
            for other, room in self._room[who].items():
                if room > 0 and other not in levels:
                    levels[other] = levels[who] + 1
                    waiting.append(other)
        return levels if SECOND in levels else {}

    def _fill(self, levels: dict[Hashable, int]) -> None:
        """Fill shortest ways until none is left."""
        ahead = {who: list(others) for who, others in self._room.items()}
        way: list[Hashable] = [FIRST]
        while way:
            who = way[-1]
            if who == SECOND:
                way = self._flow_along(way)
            elif not ahead[who]:
                way.pop()
                if way:
                    ahead[way[-1]].pop()
            elif self._room[who][ahead[who][-1]] > 0 and levels.get(ahead[who][-1]) == levels[who] + 1:
                way.append(ahead[who][-1])
            else:
                ahead[who].pop()

    def _flow_along(self, way: list[Hashable]) -> list[Hashable]:
        """Fill a way, and return the part of it before the first step that is full."""
        pairs = list(pairwise(way))
        flow = min(self._room[a][b] for a, b in pairs)
        for a, b in pairs:
            self._room[a][b] -= flow
            self._room[b][a] += flow
        full = next(place for place, (a, b) in enumerate(pairs) if not self._room[a][b])
        return way[: full + 1]


FIRST, SECOND = ("first side",), ("second side",)
"""The two sides themselves."""
