"""What a learned policy goes by, written out for people: it is read, and decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from headrace_server.core.timetable import WORTHWHILE, Timetable

STEPS_PER_DOUBLING = 32
"""Rows listed from one power of two to the next, all of them at first: curves of thousands of rows
stay short, and what a person reads off is within 3 %."""


@dataclass(frozen=True, slots=True)
class LengthPlan:
    """What is expected of batches padded to one length (0 when nothing is ragged).

    Args:
        length: the padded length.
        durations_s: expected seconds of a batch, for each of the explanation's `rows`.
        enough_rows: the smallest batch that is worth it; larger ones gain next to nothing.
    """

    length: int
    durations_s: tuple[float, ...]
    enough_rows: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """The policy's expectations and the batch sizes that follow from them.

    Args:
        margin: factor between the expected duration and its 95th percentile, at least 1.
        worthwhile: share of the best batch's work per second that makes a smaller one enough.
        rows: what the durations of each plan belong to, ascending from 1 to the largest batch.
        plans: one for each length, ascending; empty before anything is known of durations.
    """

    margin: float
    worthwhile: float
    rows: tuple[int, ...]
    plans: tuple[LengthPlan, ...]


def explanation_of(
    timetables: Mapping[int, Timetable], most_rows: int, margin: float
) -> Explanation:
    """Write out what these timetables, by length, say of batches of up to `most_rows` rows."""
    enough = {length: times.enough(most_rows) for length, times in timetables.items()}
    rows = _listed(most_rows, enough.values())
    plans = tuple(
        LengthPlan(length, tuple(times.duration_s(r) for r in rows), enough[length])
        for length, times in sorted(timetables.items())
    )
    return Explanation(margin, WORTHWHILE, rows, plans)


def _listed(most_rows: int, wanted: Iterable[int]) -> tuple[int, ...]:
    listed = {most_rows, *wanted}
    rows = 1
    while rows < most_rows:
        listed.add(rows)
        doubled_at = 1 << (rows.bit_length() - 1)
        rows += max(1, doubled_at // STEPS_PER_DOUBLING)
    return tuple(sorted(listed))
