"""The fixed binary tree over the order of the tasks, along which results are merged.

Level 0 are the tasks; node i of a level merges nodes 2i and 2i + 1 of the level below, and a last node without a
neighbour rises as it is: merge(merge(r0, r1), merge(r2, r3)), and so on. The tree depends on the number of tasks alone,
so the rounding of a merged sum does too. Of results that come in order only one a level is held.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Node(NamedTuple):
    """A node of the tree: the one at `place` of `level`."""

    level: int
    place: int


class Merge(NamedTuple):
    """Two neighbours that are both there, and the node that their merge will be."""

    node: Node
    first: Any
    second: Any


class MergeTree:
    """Takes values of nodes in any order and says what can be merged.

    Parameters
    ----------
    leaves : int
        Number of tasks, at least one.

    Attributes
    ----------
    root : any
        The value of the last merge, once it is there.
    done : bool
    """

    def __init__(self, leaves: int) -> None:
        self._widths = [leaves]
        while self._widths[-1] > 1:
            self._widths.append((self._widths[-1] + 1) // 2)
        self._waiting: dict[Node, Any] = {}
        self.done = False
        self.root: Any = None

    @property
    def merges(self) -> int:
        """How many merges there are in all."""
        return self._widths[0] - 1

    def put(self, node: Node, value: Any) -> Merge | None:
        """Set the value of a node; the merge that has become possible by it, if there is one."""
        level, place = node
        while place == self._widths[level] - 1 and place % 2 == 0:
            if level == len(self._widths) - 1:
                self.done, self.root = True, value
                return None
            level, place = level + 1, place // 2
        neighbour = Node(level, place ^ 1)
        if neighbour not in self._waiting:
            self._waiting[Node(level, place)] = value
            return None
        other = self._waiting.pop(neighbour)
        first, second = (other, value) if place % 2 else (value, other)
        return Merge(Node(level + 1, place // 2), first, second)

    def leaves(self, node: Node) -> range:
        """The tasks whose results a node holds."""
        size = 1 << node.level
        return range(node.place * size, min((node.place + 1) * size, self._widths[0]))


def merge_name(names: Sequence[str]) -> str:
    """What to call the merge of the results of these tasks."""
    return f"merge of {names[0]} to {names[-1]}"
