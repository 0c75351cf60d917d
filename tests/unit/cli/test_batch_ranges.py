"""Batches by ranges of rows."""

from __future__ import annotations

from headrace_server.cli.batch_ranges import by_range


def test_batches_are_grouped_up_to_powers_of_two() -> None:
    assert by_range({1: 1, 2: 2, 3: 3, 4: 1, 5: 5, 64: 7}) == [
        *(("1", 1), ("2", 2), ("3-4", 4), ("5-8", 5)),
        *(("9-16", 0), ("17-32", 0), ("33-64", 7)),
    ]
    assert by_range({1: 3}) == [("1", 3)]
