"""Factors on the cost curve: doubted at first, believed soon, forgotten in the end."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.core.factors import Factors, rising, steps


def taught(factors: Factors, case: object, ratio: float, times: int) -> Factors:
    """Show it batches of one case that take `ratio` times what the bare curve says."""
    for _ in range(times):
        factors.learn(case, math.log(ratio))
    return factors


def test_a_case_never_seen_has_a_factor_of_one() -> None:
    factors = Factors(doubt=1.0, clip=2.0, most_cases=4)
    assert factors.of("a") == 1.0
    assert "a" not in factors


def test_a_first_measurement_is_half_believed() -> None:
    factors = taught(Factors(doubt=1.0, clip=2.0, most_cases=4), "a", 4.0, 1)
    assert factors.of("a") == pytest.approx(2.0)


def test_many_measurements_are_believed() -> None:
    factors = taught(Factors(doubt=1.0, clip=2.0, most_cases=4), "a", 1.7, 200)
    assert factors.of("a") == pytest.approx(1.7, rel=0.03)
    assert factors.of("b") == 1.0


def test_old_measurements_fade() -> None:
    factors = taught(Factors(doubt=1.0, clip=2.0, most_cases=4), "a", 3.0, 200)
    assert taught(factors, "a", 1.5, 200).of("a") == pytest.approx(1.5, rel=0.05)


def test_an_outlier_pulls_no_harder_than_the_clip() -> None:
    factors = Factors(doubt=3.0, clip=0.5, most_cases=4)
    factors.learn("a", 50.0)
    assert factors.log("a") == pytest.approx(0.5 / 4)


def test_the_case_seen_longest_ago_is_forgotten_for_a_new_one() -> None:
    factors = Factors(doubt=1.0, clip=2.0, most_cases=2)
    for case in ("a", "b", "a", "c"):
        taught(factors, case, 2.0, 1)
    assert "b" not in factors
    assert factors.of("b") == 1.0
    assert factors.of("a") > 1.0
    assert factors.of("c") > 1.0


class TestSteps:
    def test_nothing_seen_means_no_steps(self) -> None:
        assert steps(Factors(1.0, 2.0, 8), 16, 1.0, 1.0) == ()

    def test_between_rows_that_were_seen_steps_are_interpolated(self) -> None:
        factors = Factors(doubt=1e-9, clip=2.0, most_cases=8)
        factors.learn(2, math.log(1.0))
        factors.learn(4, math.log(1.21))
        written = steps(factors, 5, 1.0, 1.0)
        assert written[2:5] == pytest.approx((1.0, 1.1, 1.21))

    @given(
        st.dictionaries(st.integers(1, 20), st.floats(-1.5, 1.5), min_size=1),
        st.floats(1e-6, 1.0),
        st.floats(0.0, 1.0),
        st.floats(0.0, 1.0),
    )
    def test_a_larger_batch_never_seems_cheaper(
        self, errors: dict[int, float], base: float, row: float, element: float
    ) -> None:
        factors = Factors(doubt=0.5, clip=2.0, most_cases=32)
        for rows, error in errors.items():
            factors.learn(rows, error)
        written = steps(factors, 20, base, row)
        durations = [(base + r * (row + element)) * written[r] for r in range(1, 21)]
        assert durations == sorted(durations)


class TestRising:
    def factors(self, **seen: tuple[float, int]) -> Factors:
        factors = Factors(doubt=1e-9, clip=9.0, most_cases=16)
        for case, (ratio, times) in seen.items():
            for _ in range(times):
                factors.learn(int(case[1:]), math.log(ratio))
        return factors

    def test_cases_never_seen_are_as_the_one_before(self) -> None:
        assert rising(self.factors(_2=(1.5, 9), _4=(2.0, 9)), 5) == pytest.approx(
            [1.0, 1.0, 1.5, 1.5, 2.0, 2.0]
        )

    def test_one_odd_measurement_does_not_lift_those_behind_it(self) -> None:
        written = rising(self.factors(_2=(6.0, 1), _8=(1.5, 200)), 8)
        assert written[8] == pytest.approx(1.5, rel=0.1)
        assert written == sorted(written)

    def test_nothing_is_ever_faster_for_it(self) -> None:
        assert rising(self.factors(_2=(0.5, 9)), 3) == [1.0] * 4

    def test_what_was_clamped_is_forgotten_as_fast_as_anything(self) -> None:
        factors = self.factors(_2=(0.85, 20_000))
        for _ in range(150):
            factors.learn(2, math.log(1.8))
        assert rising(factors, 2)[2] == pytest.approx(1.8, rel=0.05)
