"""Workers as the scheduler sees them."""

from __future__ import annotations

import math

import pytest

from headrace_server.core.fleet import WAY_S, Fleet
from headrace_server.core.request import Batch, DispatchReason


def batch(batch_id: int, worker_id: int) -> Batch:
    return Batch(batch_id, worker_id, [], 1, DispatchReason.IMMEDIATE, dispatched_s=0.0)


def fleet_of(*worker_ids: int, in_order: bool = False) -> Fleet:
    fleet = Fleet(in_order=in_order)
    for worker_id in worker_ids:
        fleet.add(worker_id)
    return fleet


def candidate_id(fleet: Fleet) -> int | None:
    fleet.check_invariants()
    worker = fleet.candidate(0.0)
    return None if worker is None else worker.id


def test_without_workers_nobody_takes_a_batch() -> None:
    assert candidate_id(fleet_of()) is None


def test_an_idle_worker_comes_before_a_busy_one() -> None:
    fleet = fleet_of(0, 1)
    fleet.assign(batch(0, 0), 0.1, 0.0)
    assert candidate_id(fleet) == 1


def test_the_worker_that_has_been_idle_longest_comes_first() -> None:
    fleet = fleet_of(0, 1)
    first = batch(0, 0)
    fleet.assign(first, None, 0.0)
    fleet.finish(first, 1.0)
    assert candidate_id(fleet) == 1


def test_among_busy_workers_the_one_that_is_free_first_stages() -> None:
    fleet = fleet_of(0, 1, 2)
    fleet.assign(batch(0, 0), 0.3, 0.0)
    fleet.assign(batch(1, 1), 0.1, 0.0)
    fleet.assign(batch(2, 2), None, 0.0)
    assert candidate_id(fleet) == 1
    fleet.assign(batch(3, 1), 0.1, 0.0)
    assert candidate_id(fleet) is None, "worker 1 is still the first, and has no room"
    fleet.assign(batch(4, 0), 0.1, 0.0)
    fleet.finish(fleet.batches()[2], 0.1)
    fleet.begin_next(1, 0.5, 0.1)
    assert candidate_id(fleet) is None, "now worker 0 is, and has none either"


def test_a_worker_of_which_nothing_is_known_comes_last() -> None:
    fleet = fleet_of(0, 1)
    fleet.assign(batch(0, 0), None, 0.0)
    assert candidate_id(fleet) == 1
    fleet.assign(batch(1, 1), 9.0, 0.0)
    assert candidate_id(fleet) == 1
    fleet.finish(fleet.running(1), 0.1)  # type: ignore[arg-type]
    fleet.assign(batch(2, 1), None, 0.1)
    assert candidate_id(fleet) == 0, "among the unknown the one that began first"


def test_the_next_hang_is_the_first_of_those_that_run() -> None:
    fleet = fleet_of(0, 1)
    first, second, staged = batch(0, 0), batch(1, 1), batch(2, 0)
    assert fleet.next_hang_s == math.inf
    fleet.assign(first, None, 0.0, 2.0)
    fleet.assign(second, None, 1.0, 2.0)
    fleet.assign(staged, None, 1.0, 9.0)
    assert fleet.next_hang_s == 2.0, "what is staged does not run yet"
    assert fleet.overdue(1.9) == []
    assert [worker.id for worker in fleet.overdue(2.0)] == [0]
    fleet.finish(first, 2.0)
    fleet.begin_next(0, None, 2.0, 9.0)
    assert fleet.next_hang_s == 3.0
    fleet.check_invariants()
    fleet.remove(1)
    assert fleet.next_hang_s == 11.0
    fleet.finish(staged, 4.0)
    assert fleet.next_hang_s == math.inf
    fleet.check_invariants()


def test_ordered_batches_stay_on_one_worker() -> None:
    fleet = fleet_of(0, 1, in_order=True)
    first, second = batch(0, 0), batch(1, 0)
    fleet.assign(first, 0.1, 0.0)
    assert candidate_id(fleet) == 0
    fleet.assign(second, 0.1, 0.0)
    assert candidate_id(fleet) is None, "the idle worker would answer out of order"
    fleet.finish(first, 0.1)
    fleet.finish(second, 0.2)
    assert candidate_id(fleet) == 1


@pytest.mark.parametrize(
    ("seen_s", "bounds_s", "ran_s"),
    [
        (0.4, (), 0.4),
        (0.4, (0.39, 0.3997), 0.4),
        pytest.param(0.4, (0.05, 0.1), 0.1 + 0.02 + WAY_S, id="its answer was read late"),
        pytest.param(0.1, (0.3, 0.4), 0.3, id="the answer before it was read late"),
        pytest.param(0.3, (0.3, 0.4), 0.3, id="what was not the model's overlapped"),
    ],
)
def test_a_batch_ran_for_as_long_as_its_worker_says_and_handing_over_took(
    seen_s: float, bounds_s: tuple[float, ...], ran_s: float
) -> None:
    fleet = fleet_of(0)
    first = batch(0, 0)
    first.handed_over_s = 0.02
    fleet.assign(first, 0.5, 1.0)
    fleet.finish(first, 1.0 + seen_s, *bounds_s)
    assert first.ran_s == pytest.approx(ran_s)


def test_a_batch_starts_when_the_one_before_it_ends() -> None:
    fleet = fleet_of(0)
    first, staged = batch(0, 0), batch(1, 0)
    fleet.assign(first, 0.5, 1.0)
    fleet.assign(staged, 0.5, 1.2)
    assert (first.started_s, first.expected_s) == (1.0, 0.5)
    assert fleet.running(0) is first
    fleet.finish(first, 1.4)
    assert first.ran_s == pytest.approx(0.4)
    assert fleet.running(0) is staged
    fleet.begin_next(0, 0.2, 1.4)
    assert (staged.started_s, staged.expected_s) == (1.4, 0.2)
    fleet.finish(staged, 1.7)
    assert staged.ran_s == pytest.approx(0.3)
    assert fleet.running(0) is None
    assert fleet.in_flight == 0


def test_a_lost_worker_gives_back_what_it_held() -> None:
    fleet = fleet_of(0, 1)
    running, staged, other = batch(0, 0), batch(1, 0), batch(2, 1)
    fleet.assign(running, None, 0.0)
    fleet.assign(staged, None, 0.0)
    fleet.assign(other, None, 0.0)
    assert fleet.remove(0) == [running, staged]
    assert 0 not in fleet
    assert 1 in fleet
    assert fleet.batches() == [other]
    assert fleet.in_flight == 1
    fleet.check_invariants()


def test_a_lost_idle_worker_gives_back_nothing() -> None:
    fleet = fleet_of(0)
    assert fleet.remove(0) == []
    assert candidate_id(fleet) is None


def test_a_worker_holds_no_third_batch() -> None:
    fleet = fleet_of(0)
    fleet.assign(batch(0, 0), None, 0.0)
    fleet.assign(batch(1, 0), None, 0.0)
    with pytest.raises(ValueError, match="worker 0 already holds 2 batches"):
        fleet.assign(batch(2, 0), None, 0.0)


def test_a_worker_is_added_once() -> None:
    with pytest.raises(ValueError, match="worker 3 is already in the fleet"):
        fleet_of(3, 3)


def test_only_the_running_batch_can_be_answered() -> None:
    fleet = fleet_of(0)
    staged = batch(1, 0)
    with pytest.raises(ValueError, match="batch 1, which is not running"):
        fleet.finish(staged, 0.0)
    fleet.assign(batch(0, 0), None, 0.0)
    fleet.assign(staged, None, 0.0)
    with pytest.raises(ValueError, match="batch 1, which is not running"):
        fleet.finish(staged, 0.0)


def test_a_dismissed_worker_takes_nothing_more() -> None:
    fleet = fleet_of(0, 1)
    first = batch(0, 0)
    fleet.assign(first, 0.1, 0.0)
    fleet.dismiss(0)
    assert fleet.free_s(0.0) == [0.0]
    assert candidate_id(fleet) == 1
    fleet.assign(batch(1, 1), 9.0, 0.0)
    assert candidate_id(fleet) == 1, "though the other one will be free sooner"
    assert not fleet.has_done_its_duty(0)
    fleet.finish(first, 0.1)
    assert fleet.has_done_its_duty(0)
    assert candidate_id(fleet) == 1
    fleet.remove(0)
    fleet.dismiss(1)
    assert candidate_id(fleet) is None


def test_in_order_nothing_overtakes_what_a_dismissed_worker_holds() -> None:
    fleet = fleet_of(0, 1, in_order=True)
    first = batch(0, 0)
    fleet.assign(first, 0.1, 0.0)
    fleet.dismiss(0)
    assert candidate_id(fleet) is None
    fleet.finish(first, 0.1)
    assert candidate_id(fleet) == 1
