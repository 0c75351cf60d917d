"""Who rides together where lengths differ: compared with every other way to divide them."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.core.cost import Curve
from headrace_server.core.request import Request
from headrace_server.core.windows import (
    GRAIN,
    Bounds,
    Neighbours,
    Window,
    best_window,
    cheapest_group,
)
from scheduler_driver import make_request

MOST_ROWS = 8
CURVES = [
    Curve(base=1e-1, row=1e-6, element=0.0, pair=0.0),
    Curve(base=1e-4, row=1e-1, element=0.0, pair=0.0),
    Curve(base=1e-2, row=1e-4, element=1e-3, pair=1e-6),
]
SIZES = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 40)), min_size=1, max_size=12)


def neighbours(sizes: list[tuple[int, int]]) -> list[Request]:
    """Requests of these rows and lengths, ascending by length."""
    ordered = sorted(sizes, key=lambda size: size[1])
    return [make_request(i, rows=r, length=x, nbytes=r * 4) for i, (r, x) in enumerate(ordered)]


def together_s(members: list[Request], curve: Curve) -> float:
    return curve.at(sum(r.rows for r in members), max(r.length for r in members))


def bounds(*, most_bytes: int = 1 << 30, start_s: float = 0.0, margin: float = 0.0) -> Bounds:
    return Bounds(MOST_ROWS, most_bytes, start_s, margin)


def group(near: list[Request], at: int, curve: Curve, bounds: Bounds) -> Window:
    return cheapest_group(Neighbours(near, at, bounds), curve, bounds)


def window_of(near: list[Request], at: int, curve: Curve, bounds: Bounds) -> Window:
    return best_window(Neighbours(near, at, bounds), curve, bounds)


class TestCheapestGroup:
    @given(SIZES, st.integers(0, 11), st.sampled_from(CURVES))
    def test_no_way_to_divide_everybody_is_cheaper(
        self, sizes: list[tuple[int, int]], at: int, curve: Curve
    ) -> None:
        near = neighbours(sizes)
        at = min(at, len(near) - 1)

        @cache
        def least_s(first: int, end: int) -> float:
            """The least time for a run of neighbours, over every way to divide it."""
            if first == end:
                return 0.0
            return min(
                together_s(near[first:cut], curve) + least_s(cut, end)
                for cut in range(first + 1, end + 1)
                if cut == first + 1 or sum(r.rows for r in near[first:cut]) <= MOST_ROWS
            )

        window = group(near, at, curve, bounds())
        assert window.first <= at < window.end
        members = near[window.first : window.end]
        assert window.rows == sum(r.rows for r in members) <= MOST_ROWS
        assert window.duration_s == pytest.approx(together_s(members, curve))
        work_s = sum(curve.at(r.rows, r.length) for r in members)
        assert window.rate == pytest.approx(work_s / window.duration_s)
        with_it = least_s(0, window.first) + window.duration_s + least_s(window.end, len(near))
        assert with_it == pytest.approx(least_s(0, len(near)))

    def test_bytes_bound_a_group_once_it_is_padded(self) -> None:
        near = [make_request(i, nbytes=nbytes, length=i) for i, nbytes in ((1, 10), (2, 40))]
        apart = group(near, 0, CURVES[0], bounds(most_bytes=79))
        assert (apart.first, apart.end) == (0, 1)
        joined = group(near, 0, CURVES[0], bounds(most_bytes=80))
        assert (joined.first, joined.end) == (0, 2)

    def test_a_wide_neighbour_does_not_narrow_the_groups_of_others(self) -> None:
        near = [make_request(i, nbytes=10, length=10) for i in range(8)]
        near.append(make_request(9, nbytes=2_000, length=2_000))
        assert group(near, 0, CURVES[0], bounds(most_bytes=100)).rows == 8

    def test_a_request_over_every_bound_still_rides_alone(self) -> None:
        near = [make_request(1, rows=20, nbytes=500, length=3), make_request(2, length=4)]
        alone = group(near, 0, CURVES[0], bounds(most_bytes=100))
        assert (alone.first, alone.end, alone.rows) == (0, 1, 20)

    def test_requests_without_contents_are_no_trouble(self) -> None:
        near = [make_request(i, nbytes=0, length=i) for i in range(3)]
        assert group(near, 1, CURVES[0], bounds()).rows == 3

    def test_the_soonest_deadline_of_the_group_is_told(self) -> None:
        near = [make_request(1, length=1), make_request(2, length=2, deadline_s=0.5)]
        assert group(near, 0, CURVES[0], bounds()).deadline_s == 0.5
        assert group(near[:1], 0, CURVES[0], bounds()).deadline_s == math.inf


class TestBestWindow:
    @given(SIZES, st.integers(0, 11), st.sampled_from(CURVES))
    def test_no_window_around_it_does_more_work_per_second(
        self, sizes: list[tuple[int, int]], at: int, curve: Curve
    ) -> None:
        near = neighbours(sizes)
        at = min(at, len(near) - 1)
        window = window_of(near, at, curve, bounds())
        rates = [
            sum(curve.at(r.rows, r.length) for r in near[first:end])
            / together_s(near[first:end], curve)
            for first in range(at + 1)
            for end in range(at + 1, len(near) + 1)
            if end == first + 1 or sum(r.rows for r in near[first:end]) <= MOST_ROWS
        ]
        assert window.rate == pytest.approx(max(rates))

    def test_deadlines_bound_it(self) -> None:
        curve = Curve(base=0.01, row=0.01, element=1e-5, pair=0.0)
        near = [
            make_request(1, length=1, deadline_s=0.035),
            make_request(2, length=2),
            make_request(3, length=3),
        ]
        window = window_of(near, 1, curve, bounds(margin=1.0))
        assert (window.first, window.end) == (0, 2), "three would take 40 ms"
        late = window_of(near, 0, curve, bounds(start_s=1.0, margin=1.0))
        assert (late.first, late.end) == (0, 1), "it must ride, whatever the bounds say"


class TestCoarse:
    @given(SIZES, st.integers(0, 200), st.integers(1, 300))
    def test_units_cover_everybody_and_keep_to_the_bounds(
        self, sizes: list[tuple[int, int]], at: int, most_bytes: int
    ) -> None:
        near = neighbours(sizes * 12)
        at = min(at, len(near) - 1)
        limits = bounds(most_bytes=most_bytes)
        units = Neighbours(near, at, limits, coarse=True)
        assert (units.cuts[0], units.cuts[-1]) == (0, len(near))
        assert (units.cuts[units.at], units.cuts[units.at + 1]) == (at, at + 1)
        for unit, (first, end) in enumerate(pairwise(units.cuts)):
            members = near[first:end]
            rows = units.rows[unit + 1] - units.rows[unit]
            assert rows == sum(request.rows for request in members)
            assert units.lengths[unit] == max(request.length for request in members)
            if len(members) > 1:
                assert rows <= MOST_ROWS
                assert rows * units.widest[unit] <= most_bytes
                assert len(members) * GRAIN <= max(at - first, end - at)

    @given(st.lists(st.integers(0, 400), min_size=1, max_size=129), st.integers(0, 128))
    def test_they_lose_little(self, lengths: list[int], at: int) -> None:
        near = neighbours([(1, length) for length in lengths])
        at = min(at, len(near) - 1)
        limits = Bounds(64, 1 << 30, 0.0, 0.0)
        coarse = Neighbours(near, at, limits, coarse=True)
        assert len(coarse.lengths) < 40
        for curve in CURVES:
            best = window_of(near, at, curve, limits)
            assert best_window(coarse, curve, limits).rate >= 0.8 * best.rate
