"""`headrace check`: what it says of a model that runs in another way than it was made."""

from __future__ import annotations

from headrace_server.cli.check import described
from headrace_server.workers.comparison import Comparison, Speed

SPEEDS = (Speed(1, 0.002, 0.001), Speed(32, 0.0300, 0.0400))


def test_differences_and_speeds_are_put_in_a_sentence() -> None:
    text = described(Comparison("random numbers", 0.0125, 0.004, 0.99998, 0.0, SPEEDS))
    assert text == (
        "answers differ by at most 0.013 (0.40% of the largest number, cosine 0.999980); "
        "1 row: 2.00x as fast (2 ms, now 1 ms); 32 rows: 0.75x as fast (30 ms, now 40 ms). "
        "Tried on random numbers."
    )


def test_answers_that_are_no_floats_are_counted() -> None:
    text = described(Comparison("model_warmup", 0.0, 0.0, 1.0, 0.25, SPEEDS))
    assert "25.00% of the other elements changed" in text
