"""What an answer says of itself besides its outputs."""

from __future__ import annotations

from headrace import InferResult, Timing

TOLD = {"headrace_batch_rows": 4, "headrace_queue_us": 1500, "headrace_compute_us": 20}


def answer(**parameters: int) -> InferResult:
    return InferResult({}, "model", "1", parameters=parameters)


def test_timing_is_in_seconds() -> None:
    timing = answer(**TOLD, own=5).timing
    assert timing == Timing(batch_rows=4, queue_s=0.0015, compute_s=0.00002)
    assert timing.server_s == 0.00152


def test_an_answer_that_was_not_told_all_of_it_has_no_timing() -> None:
    assert answer().timing is None
    for name in TOLD:
        assert answer(**{other: TOLD[other] for other in TOLD if other != name}).timing is None
