"""What is said of a model: the sentence on batching, and pictures of whatever is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headrace.explanations import (
    Activity,
    BatchSample,
    CostCurve,
    LearnedPlan,
    ModelExplanation,
    Quantiles,
)
from headrace_server.cli.explain import where_batching_pays
from headrace_server.cli.explain_plot import draw

MOST_ROWS = 16
ROWS = tuple(range(1, MOST_ROWS + 1))
QUIET = Activity(0, 0, {}, {}, {}, 0, 0.0, None, None, None, ())
BUSY = Activity(
    batches=3,
    requests=9,
    batch_rows={1: 1, 4: 2},
    dispatches={"best_size": 2, "immediate": 1},
    refusals={"queue_full": 1},
    cancelled=0,
    padding_share=0.25,
    queue_s=Quantiles(0.0, 0.1, 0.2, 0.3),
    compute_s=Quantiles(0.01, 0.01, 0.02, 0.02),
    prediction_ratio=Quantiles(0.9, 1.0, 1.1, 1.1),
    samples=(
        BatchSample(1, 7, 0.01, None),
        BatchSample(4, 7, 0.02, 0.021),
        BatchSample(4, 90, 0.5, 0.4),
    ),
)
UNPREDICTED = replace(BUSY, samples=(BatchSample(1, 0, 0.01, None), BatchSample(4, 0, 0.02, None)))


def curve(base_s: float, enough_rows: int, length: int = 0) -> CostCurve:
    return CostCurve(length, ROWS, tuple(base_s + 0.001 * rows for rows in ROWS), enough_rows)


def explanation(
    *curves: CostCurve,
    plan: bool = True,
    max_batch_size: int = MOST_ROWS,
    last_minute: Activity = QUIET,
) -> ModelExplanation:
    learned = LearnedPlan(1.2, 0.97, curves) if plan else None
    return ModelExplanation("m", "1", max_batch_size, learned, last_minute)


@pytest.mark.parametrize(
    ("explained", "sentence"),
    [
        (
            explanation(curve(0.009, 8)),
            "Batching pays up to about 8 rows: 4.7x the work per second of single rows.",
        ),
        (
            explanation(curve(0.09, 16)),
            "Batching pays all the way to 16 rows: 13.7x the work per second of single rows.",
        ),
        (explanation(curve(0, 1)), "Batching gains nothing here, so nobody waits for it."),
        (
            explanation(curve(0.009, 12, 8), curve(0.009, 8, 32), curve(0.003, 6, 128)),
            "Batching pays up to about 12 rows at length 8: 5.7x the work per second of single "
            "rows; up to about 6 rows at length 128: 2.7x.",
        ),
        (
            explanation(curve(0.009, 8, 32), curve(0, 1, 128), curve(0, 1, 512)),
            "Batching pays up to about 8 rows at length 32: 4.7x the work per second of single "
            "rows; at length 128, 512 it gains nothing, so nobody waits for it.",
        ),
        (explanation(curve(0, 1, 8), curve(0, 1, 32)), "Batching gains nothing here"),
        (explanation(), "Nothing is known of durations yet"),
        (explanation(plan=False), "Fixed rules form the batches (dynamic_batching in config.pbtxt"),
        (explanation(max_batch_size=1), "Batching is switched off (max_batch_size is 1)"),
        (explanation(max_batch_size=0), "The model has no batch dimension"),
    ],
)
def test_one_sentence_says_where_batching_pays(explained: ModelExplanation, sentence: str) -> None:
    assert where_batching_pays(explained).startswith(sentence)


def test_gains_are_work_per_second_beside_single_rows() -> None:
    fixed_cost = CostCurve(0, (1, 2, 4), (0.01, 0.01, 0.02), 2)
    assert fixed_cost.gains == pytest.approx((1.0, 2.0, 2.0))
    assert (fixed_cost.enough_s, fixed_cost.enough_gain) == pytest.approx((0.01, 2.0))


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_picture_has_the_format_of_its_name(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"picture{suffix}"
    draw(explanation(curve(0.009, 8), last_minute=BUSY), file)
    begins = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert file.read_bytes().startswith(begins[suffix])


@pytest.mark.parametrize(
    "explained",
    [
        explanation(curve(0.009, 8)),
        explanation(*(curve(0.001 * n, 8, n) for n in (7, 90, 300)), last_minute=BUSY),
        explanation(curve(0, 1), last_minute=UNPREDICTED),
        explanation(CostCurve(0, (1,), (0.01,), 1), max_batch_size=1, last_minute=BUSY),
        explanation(),
        explanation(plan=False, last_minute=UNPREDICTED),
    ],
    ids=["quiet", "lengths", "no gain", "one row", "nothing known", "fixed rules"],
)
def test_whatever_is_known_can_be_drawn(tmp_path: Path, explained: ModelExplanation) -> None:
    file = tmp_path / "picture.png"
    draw(explained, file)
    assert file.stat().st_size > 5_000
