"""The cost model: it learns, forgives outliers, and notices when everything changes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.core.cost import CostModel, Curve, Sample

LINEAR = Curve(base=2e-3, row=1e-3, element=1e-5, pair=0.0)


def sweep_of(curve: Curve, lengths: tuple[int, ...] = (10, 100, 500)) -> list[Sample]:
    return [(rows, x, curve.at(rows, x)) for rows in (1, 2, 4, 8, 16, 32) for x in lengths]


def serve(
    model: CostModel, curve: Curve, batches: int, *, rows: int = 8, length: int = 100
) -> None:
    """Let the model see batches that cost what the curve says; one in two is taken in."""
    for _ in range(batches):
        model.observe(rows, length, curve.at(rows, length))


def times(curve: Curve, factor: float) -> Curve:
    return Curve(
        curve.base * factor, curve.row * factor, curve.element * factor, curve.pair * factor
    )


def test_nothing_is_believed_before_the_first_measurement() -> None:
    assert CostModel().curve is None
    assert CostModel([(1, 0, 0.0)]).curve is None, "a sweep without any duration is none"


@pytest.mark.parametrize(
    "curve",
    [
        LINEAR,
        Curve(base=5e-3, row=0.0, element=0.0, pair=0.0),
        Curve(base=1e-3, row=2e-4, element=1e-6, pair=3e-8),
    ],
    ids=["linear", "constant", "attention"],
)
def test_a_sweep_is_reproduced(curve: Curve) -> None:
    learned = CostModel(sweep_of(curve)).curve
    assert learned is not None
    for rows, length, duration_s in sweep_of(curve, (10, 50, 500)):
        assert learned.at(rows, length) == pytest.approx(duration_s, rel=0.1)


def test_the_first_batch_is_believed_at_once() -> None:
    model = CostModel()
    model.observe(4, 0, 0.25)
    assert model.curve is not None
    assert model.curve.at(4, 0) == pytest.approx(0.25)


def test_a_batch_that_took_no_time_teaches_nothing() -> None:
    model = CostModel()
    model.observe(4, 0, 0.0)
    assert model.curve is None


def test_what_is_served_refines_what_was_swept() -> None:
    model = CostModel(sweep_of(LINEAR))
    serve(model, times(LINEAR, 1.3), 400)
    assert model.curve is not None
    assert model.curve.at(8, 100) == pytest.approx(1.3 * LINEAR.at(8, 100), rel=0.05)


@pytest.mark.parametrize("factor", [1_000.0, 1 / 1_000.0])
def test_a_single_outlier_hardly_matters(factor: float) -> None:
    model = CostModel(sweep_of(LINEAR))
    serve(model, LINEAR, 100)
    serve(model, times(LINEAR, factor), 2)
    serve(model, LINEAR, 10)
    assert model.curve is not None
    assert model.curve.at(8, 100) == pytest.approx(LINEAR.at(8, 100), rel=0.1)


def test_old_measurements_fade() -> None:
    model = CostModel(sweep_of(LINEAR))
    serve(model, LINEAR, 1_000)
    serve(model, times(LINEAR, 1.3), 300)
    assert model.curve is not None
    assert model.curve.at(8, 100) == pytest.approx(1.3 * LINEAR.at(8, 100), rel=0.05)


def test_when_everything_slows_down_so_does_what_is_not_served() -> None:
    model = CostModel(sweep_of(LINEAR))
    serve(model, times(LINEAR, 4.0), 100)
    assert model.curve is not None
    assert model.curve.at(32, 500) == pytest.approx(4 * LINEAR.at(32, 500), rel=0.2)


def test_learning_waits_until_there_was_work_enough_to_learn_from() -> None:
    model = CostModel([(1, 0, 1e-5)])
    before = model.curve
    for _ in range(100):
        model.observe(1, 0, 2e-5)
    assert model.curve is before, "two milliseconds of batches are not worth a fit"
    assert model.margin == 1.0, "nor a measurement"
    serve(model, Curve(base=2 * CostModel.LEARN_EVERY_S, row=0.0, element=0.0, pair=0.0), 2)
    assert model.margin > 1.0
    assert model.curve is before
    serve(model, Curve(base=CostModel.FIT_EVERY_S, row=0.0, element=0.0, pair=0.0), 3)
    assert model.curve is not before


def test_no_batch_is_free() -> None:
    by_pairs = [(rows, x, 1e-5 * rows * x * x) for rows in (1, 4, 8) for x in (10, 100)]
    model = CostModel(by_pairs)
    assert model.curve is not None
    assert model.curve.at(1, 0) > 0.0


def test_the_margin_covers_almost_every_batch() -> None:
    model = CostModel(sweep_of(LINEAR))
    assert model.margin == 1.0
    steady = LINEAR.at(8, 100)
    for turn in range(4_000):
        # Half of the batches are taken in, every tenth of those is late.
        model.observe(8, 100, steady * (1.4 if turn % 20 in (0, 1) else 1.0))
    assert 1.2 < model.margin < 1.6


@given(
    st.lists(
        st.tuples(st.integers(1, 64), st.integers(0, 512), st.floats(1e-6, 10.0)),
        min_size=1,
        max_size=30,
    ),
    st.integers(0, 30),
)
def test_whatever_is_measured_a_larger_batch_never_seems_cheaper(
    samples: list[Sample], swept: int
) -> None:
    model = CostModel(samples[:swept])
    for rows, length, duration_s in samples[swept:]:
        model.observe(rows, length, duration_s)
    curve = model.curve
    assert curve is not None
    assert 0.0 < curve.at(1, 0) <= curve.at(2, 0) <= curve.at(2, 64) <= curve.at(64, 512)
    assert math.isfinite(curve.at(64, 512))
    assert model.margin >= 1.0


def batches(model: CostModel, count: int, duration_s: float, **how: object) -> None:
    """Let the model see batches of four rows; those that are taken in teach it."""
    for _ in range(count):
        model.observe(4, 0, duration_s, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [(), (1.0, 1.5, 2.0)])
def test_a_curve_written_out_is_the_curve(steps: tuple[float, ...]) -> None:
    curve = Curve(base=2e-3, row=1e-3, element=1e-5, pair=1e-8, steps=steps)
    assert curve.upto(5, 40) == [curve.at(rows, 40) for rows in range(1, 6)]


class TestSteps:
    TILE = 8

    def stepped(self, rows: int) -> float:
        """A device that computes rows by the tile."""
        return 0.02 + 0.02 * math.ceil(rows / self.TILE)

    def test_steps_are_learned_without_being_told_of(self) -> None:
        model = CostModel([(rows, 0, self.stepped(rows)) for rows in (1, 2, 4, 8, 16, 32)])
        for turn in range(32 * 60):
            rows = 1 + turn % 32
            model.observe(rows, 0, self.stepped(rows))
        assert model.curve is not None
        for rows in range(1, 33):
            assert model.curve.at(rows, 0) == pytest.approx(self.stepped(rows), rel=0.06)

    def test_a_linear_device_has_none(self) -> None:
        model = CostModel([(rows, 0, LINEAR.at(rows, 0)) for rows in (1, 2, 4, 8, 16, 32)])
        assert model.curve is not None
        assert model.curve.steps == pytest.approx([1.0] * 33, rel=1e-6)

    def test_where_lengths_differ_the_curve_stays_smooth(self) -> None:
        model = CostModel(sweep_of(LINEAR))
        assert model.curve is not None
        assert model.curve.steps == ()

    def test_beyond_the_rows_seen_the_last_step_goes_on(self) -> None:
        curve = Curve(base=0.0, row=1.0, element=0.0, pair=0.0, steps=(1.0, 2.0))
        assert curve.at(5, 0) == 10.0

    def test_rows_without_bound_are_not_remembered(self) -> None:
        model = CostModel([(1, 0, 0.1), (10 * CostModel.MOST_STEPS, 0, 1.0)])
        assert model.curve is not None
        assert len(model.curve.steps) <= CostModel.MOST_STEPS + 1
        model.observe(20 * CostModel.MOST_STEPS, 0, 2.0)
        model.observe(20 * CostModel.MOST_STEPS, 0, 2.0)
        assert len(model.curve.steps) <= CostModel.MOST_STEPS + 1


SWEEP = tuple((rows, 0, LINEAR.at(rows, 0)) for rows in (1, 2, 4, 8))


class TestCompany:
    def test_workers_that_slow_each_other_down_are_expected_to(self) -> None:
        model = CostModel(SWEEP)
        alone_s = LINEAR.at(4, 0)
        for _ in range(20):
            batches(model, 10, alone_s, running=1)
            batches(model, 10, 1.8 * alone_s, running=2)
        alone, both = model.curve_for(None, 1), model.curve_for(None, 2)
        assert alone is not None
        assert both is not None
        assert alone.at(4, 0) == pytest.approx(alone_s, rel=0.1)
        assert both.at(4, 0) == pytest.approx(1.8 * alone_s, rel=0.1)
        assert model.slowdown(3) == model.slowdown(2), "no fewer than with two"

    def test_a_second_worker_is_no_drift(self) -> None:
        model = CostModel(SWEEP)
        alone_s = LINEAR.at(4, 0)
        batches(model, 200, 3.0 * alone_s, running=2)
        assert model.curve is not None
        assert model.curve.at(4, 0) == pytest.approx(alone_s, rel=0.35)
        both = model.curve_for(None, 2)
        assert both is not None
        assert both.at(4, 0) == pytest.approx(3.0 * alone_s, rel=0.1)

    def test_workers_never_speed_each_other_up(self) -> None:
        model = CostModel(SWEEP)
        batches(model, 100, 0.7 * LINEAR.at(4, 0), running=2)
        assert model.slowdown(2) == 1.0


class TestKeys:
    def test_keys_of_one_length_may_cost_differently(self) -> None:
        model = CostModel(SWEEP)
        for _ in range(20):
            batches(model, 10, LINEAR.at(4, 0), key="plain")
            batches(model, 10, 2 * LINEAR.at(4, 0), key="with an option")
        plain, dear = model.curve_for("plain", 1), model.curve_for("with an option", 1)
        assert plain is not None
        assert dear is not None
        assert dear.at(4, 0) == pytest.approx(2 * plain.at(4, 0), rel=0.15)
        assert model.curve_for("never seen", 1) is model.curve

    def test_a_curve_stays_the_same_object_until_something_is_learned(self) -> None:
        model = CostModel([(1, 0, 0.1)])
        assert model.curve_for("a", 1) is model.curve_for("a", 1)
        before = model.curve_for("a", 1)
        batches(model, 20, 0.1, key="a")
        assert model.curve_for("a", 1) is not before

    def test_keys_without_number_do_not_fill_memory(self) -> None:
        model = CostModel([(1, 0, 0.1)])
        for key in range(1_000):
            assert model.curve_for(key, 1) is model.curve
        assert len(model._curves) <= 4 * CostModel.MOST_KEYS
        for key in range(1_000):
            model.observe(1, 0, 0.1, key)
            model.curve_for(key, 1)
        assert len(model._curves) <= 4 * CostModel.MOST_KEYS

    def test_nothing_is_known_of_any_key_before_the_first_measurement(self) -> None:
        assert CostModel().curve_for("a", 1) is None
