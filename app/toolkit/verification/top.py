"""The few of many that rank first: the images that differ most, the classes that disagree most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

WORST_CLASSES = 10


class Top(Generic[Item]):
    """The `count` items of the largest keys, kept while the many go by; of equal keys, those that came first."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: list[tuple[float, Item]] = []

    def add(self, key: float, item: Item) -> None:
        """Keep the item if it ranks."""
        self._kept.append((key, item))
        self._kept.sort(key=lambda pair: -pair[0])
        del self._kept[self._count :]

    @property
    def items(self) -> tuple[Item, ...]:
        """The largest key first."""
        return tuple(item for _, item in self._kept)


def most_mismatched(
    names: Mapping[int, str], totals: Mapping[int, int], mismatches: Mapping[int, int], unit: str
) -> tuple[dict[str, Any], ...]:
    """The ten classes of most mismatches; of equally many, the higher rate first. `unit` names what `totals` count."""
    ranked = sorted(
        (index for index, count in mismatches.items() if count),
        key=lambda index: (-mismatches[index], -mismatches[index] / totals[index], index),
    )
    return tuple(
        {
            "class": index,
            "name": names[index],
            unit: totals[index],
            "mismatches": mismatches[index],
            "rate": mismatches[index] / totals[index],
        }
        for index in ranked[:WORST_CLASSES]
    )
