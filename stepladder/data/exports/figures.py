"""Figures of a data set of any size, in a memory that does not grow with it."""

import math
from collections.abc import Iterable

import numpy as np

from stepladder.digests import short_number

_MOST_VALUES = 1 << 16
"""Different values above which they are kept to four digits."""
_DIGITS = 4


class Spread:
    """Mean, extremes and median of numbers.

    The median is exact for up to 65,536 different values, and beyond that to the four digits that a data card shows.
    """

    def __init__(self) -> None:
        """Begin without numbers."""
        self.count, self._sum, self.smallest, self.largest = 0, 0.0, math.inf, -math.inf
        self._counts: dict[float, int] = {}
        self._is_rounded = False

    def add(self, values: np.ndarray) -> None:
        """Add numbers, which must be finite.

        Args:
            values: Numbers, [N] float64.
        """
        if not len(values):
            return
        self.count += len(values)
        self._sum = math.fsum([self._sum, *values.tolist()])
        self.smallest, self.largest = min(self.smallest, float(values.min())), max(self.largest, float(values.max()))
        self._count(_rounded(values) if self._is_rounded else values, np.ones(len(values), dtype=np.int64))
        if len(self._counts) > _MOST_VALUES and not self._is_rounded:
            self._is_rounded = True
            kept, counts = np.array([*self._counts]), np.array([*self._counts.values()])
            self._counts = {}
            self._count(_rounded(kept), counts)

    def _count(self, values: np.ndarray, counts: np.ndarray) -> None:
        distinct, places = np.unique(values, return_inverse=True)
        for value, count in zip(distinct.tolist(), np.bincount(places, weights=counts).tolist(), strict=True):
            self._counts[value] = self._counts.get(value, 0) + int(count)

    @property
    def mean(self) -> float:
        """The mean of at least one number."""
        return self._sum / self.count

    @property
    def median(self) -> float:
        """The median of at least one number; of an even count, the mean of the two in the middle."""
        values = sorted(self._counts)
        ends = np.cumsum([self._counts[value] for value in values])
        low, high = (values[int(np.searchsorted(ends, place, side="right"))] for place in ((self.count - 1) // 2, self.count // 2))
        return (low + high) / 2


def _rounded(values: np.ndarray) -> np.ndarray:
    """Round numbers to four significant digits."""
    magnitudes = np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros(len(values))))
    scales = 10.0 ** (_DIGITS - 1 - magnitudes)
    return np.round(values * scales) / scales


class Distinct:
    """How many different names there are, from eight bytes of each: two names in a million share theirs once in 40 million data sets."""

    def __init__(self) -> None:
        """Begin without names."""
        self._numbers: list[np.ndarray] = []

    def add(self, names: Iterable[str]) -> None:
        """Add names."""
        self._numbers.append(np.array([short_number(name) for name in names], dtype=np.uint64))

    def __len__(self) -> int:
        if self._numbers:
            self._numbers = [np.unique(np.concatenate(self._numbers))]
            return len(self._numbers[0])
        return 0
