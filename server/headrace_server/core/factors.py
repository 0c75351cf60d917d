"""What a smooth curve of costs misses, as factors: by rows, by batch key, by workers at once."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable


class Factors:
    """Learned factors around 1, one for each case: by how much durations differ there.

    A factor is the exponential of a mean of log ratios, measured over expected, in which `doubt`
    more measurements of 1 count: a case that was hardly seen stays near 1. Old measurements fade,
    and the case that was seen longest ago is forgotten for the sake of a new one.
    """

    FADING = 0.98
    """Weight that a measurement of a case keeps with each later one: about the last 50 count."""

    def __init__(self, doubt: float, clip: float, most_cases: int) -> None:
        self._doubt = doubt
        self._clip = clip
        self._most_cases = most_cases
        self._seen: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def __contains__(self, case: object) -> bool:
        return case in self._seen

    def learn(self, case: Hashable, seen: float, weight: float = 1.0) -> None:
        """Take in one measurement; `seen`: log of measured over expected, this factor left out."""
        count, total = self._seen.pop(case, (0.0, 0.0))
        own = total / (count + self._doubt)
        seen = own + max(-self._clip, min(self._clip, seen - own))
        fading = self.FADING
        self._seen[case] = count * fading + weight, total * fading + weight * seen
        if len(self._seen) > self._most_cases:
            self._seen.popitem(last=False)

    def log(self, case: Hashable) -> float:
        """The logarithm of the factor; 0 for a case never seen."""
        count, total = self._seen.get(case, (0.0, 0.0))
        return total / (count + self._doubt)

    def weight(self, case: Hashable) -> float:
        """How many measurements count, faded."""
        return self._seen.get(case, (0.0, 0.0))[0]

    def of(self, case: Hashable) -> float:
        """The factor."""
        return math.exp(self.log(case))


def rising(factors: Factors, most: int) -> list[float]:
    """Factors for the cases 0 to `most`, at least 1 and never falling from one to the next.

    Where those seen fall, neighbours are pooled by how much of each was seen (isotonic
    regression; Ayer et al., 1955): one odd measurement does not lift all cases behind it.
    """
    pools: list[tuple[float, float, int]] = []
    for case in range(most + 1):
        if case not in factors:
            continue
        weight, value, first = factors.weight(case), factors.log(case), case
        while pools and pools[-1][1] >= value:
            other_weight, other, first = pools.pop()
            value = (weight * value + other_weight * other) / (weight + other_weight)
            weight += other_weight
        pools.append((weight, value, first))
    written = [1.0] * (most + 1)
    for _, value, first in pools:
        written[first:] = [math.exp(max(0.0, value))] * (most + 1 - first)
    return written


def steps(factors: Factors, most_rows: int, base_s: float, row_s: float) -> tuple[float, ...]:
    """Factors for 0 to `most_rows` rows, interpolated between those seen, from factors by rows.

    A curve of at least `base_s + rows * row_s` times these never falls from one row to the next:
    `(base + r p) / (base + (r + 1) p)` is largest where the cost p of a row is smallest.
    """
    seen = [(rows, factors.log(rows)) for rows in range(1, most_rows + 1) if rows in factors]
    if not seen:
        return ()
    written = [1.0] * (most_rows + 1)
    for (low, first), (high, last) in zip([seen[0], *seen], seen, strict=False):
        for rows in range(low, high + 1):
            share = (rows - low) / (high - low) if high > low else 1.0
            written[rows] = math.exp(first + share * (last - first))
    for rows in range(2, most_rows + 1):
        least = (base_s + (rows - 1) * row_s) / (base_s + rows * row_s)
        # A hair more, for the last digit.
        written[rows] = max(written[rows], written[rows - 1] * least * (1 + 1e-12))
    return tuple(written)
