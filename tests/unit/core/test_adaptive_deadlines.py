"""The learned policy under deadlines: when it waits, whom it refuses, and that nobody starves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from headrace_server.core.adaptive import (
    AGEING_S,
    DEFAULT_PRIORITY,
    LEAST_PRIORITY,
    LONGER,
    PATIENCE_S,
    AdaptivePolicy,
)
from headrace_server.core.company import SLACK
from headrace_server.core.cost import Curve, Sample
from headrace_server.core.errors import Reason
from headrace_server.core.holding import MOST_KEYS, SPARE, TIMER_S
from headrace_server.core.policy import Decision, Formation, Hold, Opening, Refusal
from headrace_server.core.queue import Queue, QueueLimits
from headrace_server.core.request import Alone, Batch, DispatchReason, Request
from scheduler_driver import SchedulerDriver, make_request, rejections

CURVE = Curve(base=0.010, row=0.001, element=1e-6, pair=0.0)
"""11 ms for one row, 26 ms for sixteen."""
MOST_ROWS = 16


def policy_under(
    rate: float,
    *,
    until_s: float = 0.0,
    sweep_length: int = 0,
    sweep: Sequence[Sample] = (),
    together: int = 1,
) -> AdaptivePolicy:
    """A policy that knows the curve, and has seen `rate` single rows a second until then, so many
    `together`."""
    lengths = (sweep_length, 10 * sweep_length) if sweep_length else (0,)
    sweep = sweep or [(rows, x, CURVE.at(rows, x)) for rows in (1, 4, 16) for x in lengths]
    policy = AdaptivePolicy(MOST_ROWS, sweep, timer_s=0.0)
    for number in range(200):
        moment_s = until_s - (199 - number) // together * together / rate
        policy.arrived(make_request(-number, length=sweep_length), moment_s)
    return policy


def decided(policy: AdaptivePolicy, requests: list[Request], opening: Opening) -> Decision:
    queue = Queue(QueueLimits(), policy.urgency)
    for request in requests:
        request.joined_s = request.arrival_s
        queue.push(request)
    return policy.form(queue, opening)


def dated(count: int, *, at: float = 0.0, budget_s: float = 0.040, **more: int) -> list[Request]:
    return [
        make_request(i, at=at, deadline_s=at + budget_s, **more)  # type: ignore[arg-type]
        for i in range(1, count + 1)
    ]


def two_workers(now: float, *, other_s: float | None = None) -> Opening:
    """One worker is idle, the other one too or free at `other_s`."""
    return Opening(now, [now, now if other_s is None else other_s], 1 if other_s is None else 2)


class TestHolding:
    def test_with_two_workers_a_small_batch_waits_for_company(self) -> None:
        # 350 a second on two workers: each must do 175 * 11 ms = 1.9 s of work a second.
        decision = decided(policy_under(350), dated(1), two_workers(0.0, other_s=0.012))
        assert isinstance(decision, Hold)
        assert decision.until_s <= 0.040 - CURVE.at(2, 0)

    def test_it_goes_once_it_keeps_up(self) -> None:
        decision = decided(policy_under(350), dated(6), two_workers(0.0, other_s=0.012))
        assert isinstance(decision, Formation)
        assert decision.rows <= 6

    def test_one_worker_never_waits(self) -> None:
        decision = decided(policy_under(350), dated(1), Opening(0.0, [0.0]))
        assert isinstance(decision, Formation)

    def test_without_a_deadline_nobody_waits(self) -> None:
        decision = decided(policy_under(350), [make_request(1)], two_workers(0.0, other_s=0.012))
        assert isinstance(decision, Formation)

    def test_who_has_all_the_time_is_not_held(self) -> None:
        requests = dated(1, budget_s=5.0)
        decision = decided(policy_under(350), requests, two_workers(0.0, other_s=0.012))
        assert isinstance(decision, Formation)

    @pytest.mark.parametrize("base_s", [0.0, 0.0002])
    def test_where_batching_gains_next_to_nothing_nobody_is_held(self, base_s: float) -> None:
        # Each of the four workers must do a per cent more than one row alone does.
        sweep = [(rows, 0, base_s + (0.011 - base_s) * rows) for rows in (1, 4, 16)]
        opening = Opening(0.0, [0.0, 0.02, 0.02, 0.02], 4)
        decision = decided(policy_under(368, sweep=sweep), dated(1, budget_s=0.22), opening)
        assert isinstance(decision, Formation)

    def test_an_almost_idle_server_makes_nobody_wait(self) -> None:
        decision = decided(policy_under(20), dated(1), two_workers(0.0))
        assert isinstance(decision, Formation)
        assert decision.reason is DispatchReason.IMMEDIATE

    def test_the_last_moment_ends_the_wait(self) -> None:
        last_s = 0.040 - CURVE.at(3, 0)
        policy = policy_under(350, until_s=last_s)
        requests = [*dated(1), make_request(2, at=last_s, deadline_s=1.0)]
        decision = decided(policy, requests, two_workers(last_s + 1e-6, other_s=last_s + 0.02))
        assert isinstance(decision, Formation)
        assert decision.reason is DispatchReason.LAST_MOMENT

    def test_nobody_waits_for_those_who_ask_for_what_no_worker_can_do(self) -> None:
        policy = AdaptivePolicy(MOST_ROWS, [(rows, 0, CURVE.at(rows, 0)) for rows in (1, 4, 16)])
        for number in range(2_000):
            moment_s = (number - 2_000) / 350
            policy.arrived(make_request(-number, deadline_s=moment_s + 0.010), moment_s)
        decision = decided(policy, dated(1), two_workers(0.0, other_s=0.012))
        assert isinstance(decision, Formation)

    def test_silence_ends_the_wait(self) -> None:
        requests = dated(1, budget_s=0.1)
        held = decided(policy_under(350), requests, two_workers(0.0, other_s=0.012))
        assert isinstance(held, Hold)
        assert held.until_s < 0.1, "nobody waits for a burst that is over"
        after_s = held.until_s
        decision = decided(policy_under(350), requests, two_workers(after_s, other_s=1.0))
        assert isinstance(decision, Formation)

    def test_windows_are_held_too(self) -> None:
        policy = policy_under(350, sweep_length=10)
        requests = [
            make_request(i, deadline_s=0.040, length=length) for i, length in ((1, 10), (2, 11))
        ]
        assert isinstance(decided(policy, requests, two_workers(0.0, other_s=0.012)), Hold)

    def test_whether_a_window_is_held_depends_on_its_head_not_on_the_shortest(self) -> None:
        policy = policy_under(350, sweep_length=10)
        requests = [make_request(1, deadline_s=0.040, length=11), make_request(2, length=10)]
        assert isinstance(decided(policy, requests, two_workers(0.0, other_s=0.012)), Hold)

    def test_the_largest_batch_that_is_possible_does_not_wait(self) -> None:
        # Of the 37 ms, two thirds are left to who just missed a worker: 14 rows take 24.
        requests = dated(14, budget_s=0.037)
        opening = two_workers(0.0, other_s=0.012)
        assert isinstance(decided(policy_under(1_300), requests, opening), Formation)
        assert isinstance(decided(policy_under(1_300), requests[:13], opening), Hold)

    def test_a_row_that_costs_more_than_waiting_leaves_for_it_is_not_waited_for(self) -> None:
        # It adds 1 ms. Two workers have 2 / rate for each row, and one that waits loses half of it.
        sweep = [(rows, 0, 0.004 + 0.001 * rows) for rows in (1, 4, 16)]
        requests = dated(3, budget_s=0.0245)
        opening = two_workers(0.0, other_s=0.012)
        worth, dear = (policy_under(x * SPARE * 1_000, sweep=sweep) for x in (0.9, 1.1))
        assert isinstance(decided(worth, requests, opening), Hold)
        assert isinstance(decided(dear, requests, opening), Formation)

    def test_who_comes_beyond_what_workers_can_take_shortens_no_wait(self) -> None:
        # Two workers take 1,170 a second in batches of 14, the largest with 37 ms.
        requests = dated(3, budget_s=0.037)
        opening = two_workers(0.0, other_s=0.012)
        assert isinstance(decided(policy_under(5_000), requests, opening), Hold)

    def test_rows_that_fill_a_step_of_the_device_are_waited_for(self) -> None:
        # The next row begins a step of 8 that costs 6 ms, all of them together less than 1 ms each.
        steps = [(rows, 0, 0.010 + 0.006 * (rows > 8)) for rows in (1, 8, 9, 16)]
        policy = policy_under(1_600, sweep=steps)
        requests = dated(8, budget_s=0.037)
        assert isinstance(decided(policy, requests, two_workers(0.0, other_s=0.012)), Hold)

    def test_what_is_not_sure_to_keep_up_does_not(self) -> None:
        # Five rows do 3.7 s of work a second; the need is 3.3 or, where 24 come at a time, up to 5.
        opening = two_workers(0.0, other_s=0.012)
        for together, kind in ((1, Formation), (24, Hold)):
            policy = policy_under(600, together=together)
            assert isinstance(decided(policy, dated(5), opening), kind)

    def test_less_is_asked_while_others_are_idle(self) -> None:
        def opening(busy: int) -> Opening:
            return Opening(0.0, [0.0] * (4 - busy) + [0.012] * busy, busy + 1)

        # Four rows do 3.1 s of work a second, four workers need 4.1 together and half that of two.
        policy = policy_under(1_500)
        assert isinstance(decided(policy, dated(4), opening(3)), Hold)
        assert isinstance(decided(policy, dated(4), opening(2)), Formation)
        assert isinstance(decided(policy, dated(2), opening(2)), Hold)
        assert isinstance(decided(policy, dated(1), opening(0)), Formation)

    def test_workers_that_were_dismissed_do_not_count_twice(self) -> None:
        opening = Opening(0.0, [0.0, 0.012], running=3)
        assert isinstance(decided(policy_under(600), dated(5), opening), Formation)

    def test_what_a_row_costs_is_held_against_the_pace_of_rows_not_of_requests(self) -> None:
        sweep = [(rows, 0, 0.004 + 0.001 * rows) for rows in (1, 4, 16)]
        for rate, kind in ((0.9 * SPARE * 500, Hold), (1.1 * SPARE * 500, Formation)):
            policy = AdaptivePolicy(MOST_ROWS, sweep)
            for number in range(200):
                policy.arrived(make_request(-number, rows=2), (number - 199) / rate)
            requests = dated(2, budget_s=0.0245, rows=2)
            assert isinstance(decided(policy, requests, two_workers(0.0, other_s=0.012)), kind)

    def test_workers_that_slow_each_other_down_need_larger_batches(self) -> None:
        requests = dated(5, budget_s=0.080)
        opening = two_workers(0.0, other_s=0.024)
        policy = policy_under(420)
        assert isinstance(decided(policy, requests, opening), Formation)
        for _ in range(40):
            policy.cost.observe(4, 0, 2 * CURVE.at(4, 0), None, 2)
        assert isinstance(decided(policy, requests, opening), Hold)

    def test_the_margin_and_the_timer_are_kept_before_the_last_moment(self) -> None:
        policy = policy_under(350)
        policy._holding._timer_s = 0.001
        policy.cost.margin = 1.2
        requests = dated(1, budget_s=0.028)
        decision = decided(policy, requests, two_workers(0.0, other_s=0.012))
        assert isinstance(decision, Hold)
        assert decision.until_s == pytest.approx(0.028 - 1.2 * CURVE.at(2, 0) - 0.001)

    def test_nobody_waits_for_those_of_another_key(self) -> None:
        policy = policy_under(350)
        for number in range(40):  # one in a while: none is expected within its 40 ms
            policy.arrived(make_request(-number, key="odd"), (number - 40) / 10)
        opening = two_workers(0.0, other_s=0.012)
        assert isinstance(decided(policy, dated(1), opening), Hold)
        odd = make_request(1, key="odd", deadline_s=0.040)
        assert isinstance(decided(policy, [odd], opening), Formation)

    def test_who_rides_alone_waits_for_nobody(self) -> None:
        alone = make_request(1, key=Alone("a", 1), deadline_s=0.040)
        opening = two_workers(0.0, other_s=0.012)
        assert isinstance(decided(policy_under(350), [alone], opening), Formation)

    def test_keys_that_are_made_up_are_forgotten(self) -> None:
        policy = policy_under(350)
        for number in range(1_000):
            policy.arrived(make_request(number, key=number), 0.0)
        assert len(policy._holding._companies) <= MOST_KEYS

    def test_a_burst_that_is_over_leaves_nobody_behind(self) -> None:
        driver = SchedulerDriver(workers=2, policy=policy_under(2_000))
        for _ in range(40):
            driver.submit(deadline_s=5.0)
        driver.settle()
        for _ in range(40):
            for batch_id in list(driver.in_flight):
                driver.complete(batch_id)
            driver.advance_to(driver.now + 0.02)
        assert set(driver.outcomes.values()) == {"completed"}


class TestBursts:
    """Bursts of eight within a millisecond, four a second: next to no load for two workers."""

    LAST_S = 60 / 4
    GAP_S = 1 / 8_000

    def policy(
        self, *, timer_s: float = 0.0, curve: Curve = CURVE, gap_s: float = GAP_S
    ) -> AdaptivePolicy:
        sweep = [(rows, x, curve.at(rows, x)) for rows in (1, 4, 16) for x in (0, 10)]
        policy = AdaptivePolicy(MOST_ROWS, sweep, timer_s=timer_s)
        for number in range(8 * 60 + 1):
            burst, member = divmod(number, 8)
            policy.arrived(make_request(-number), burst / 4 + member * gap_s)
        return policy

    def opening(self, workers: int, *, after_s: float = 0.0) -> Opening:
        now = self.LAST_S + after_s
        return Opening(now, [now] * workers)

    @pytest.mark.parametrize("workers", [1, 2])
    @pytest.mark.parametrize("budget_s", [0.040, math.inf])
    def test_the_first_of_a_burst_waits_a_moment_for_the_others(
        self, workers: int, budget_s: float
    ) -> None:
        requests = dated(1, at=self.LAST_S, budget_s=budget_s)
        decision = decided(self.policy(), requests, self.opening(workers))
        assert isinstance(decision, Hold)
        waits_s = decision.until_s - self.LAST_S
        assert waits_s == pytest.approx(SLACK * self.GAP_S, rel=1e-6)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_who_stays_alone_goes_after_that_moment(self, workers: int) -> None:
        opening = self.opening(workers, after_s=1.001 * SLACK * self.GAP_S)
        decision = decided(self.policy(), dated(1, at=self.LAST_S), opening)
        assert isinstance(decision, Formation)
        assert decision.reason is DispatchReason.IMMEDIATE

    @pytest.mark.parametrize(("workers", "waits"), [(1, True), (4, False)])
    def test_less_is_waited_for_the_longer_workers_idle_anyway(
        self, workers: int, waits: bool
    ) -> None:
        # Two batches save 10 ms by being one. Of one worker a third of the time would be taken
        # without any batches, of four workers a twelfth: not worth two milliseconds.
        requests = dated(1, at=self.LAST_S, budget_s=1.0)
        decision = decided(self.policy(gap_s=0.002), requests, self.opening(workers))
        assert isinstance(decision, Hold) is waits

    @pytest.mark.parametrize(("workers", "waits"), [(1, True), (2, False)])
    def test_a_timer_must_be_worth_its_delay(self, workers: int, waits: bool) -> None:
        # A third and a sixth of 10 ms: more and less than `WORTH_TIMERS` of half a millisecond.
        requests = dated(1, at=self.LAST_S, budget_s=1.0)
        decision = decided(self.policy(timer_s=TIMER_S), requests, self.opening(workers))
        assert isinstance(decision, Hold) is waits

    def test_where_a_batch_saves_next_to_nothing_nobody_waits(self) -> None:
        no_gain = Curve(base=0.0005, row=0.0285, element=0.0, pair=0.0)
        policy = self.policy(timer_s=TIMER_S, curve=no_gain)
        requests = dated(1, at=self.LAST_S, budget_s=1.0)
        assert isinstance(decided(policy, requests, self.opening(1)), Formation)

    def test_a_window_that_has_nearly_all_to_gain_does_not_wait(self) -> None:
        def window(rows: int) -> Decision:
            requests = [make_request(i, at=self.LAST_S, length=10 + i % 2) for i in range(rows)]
            return decided(self.policy(), requests, self.opening(1))

        assert isinstance(window(MOST_ROWS - 1), Formation)
        assert isinstance(window(3), Hold)

    def test_a_moment_shorter_than_a_timer_is_not_waited(self) -> None:
        policy = self.policy(timer_s=0.003)
        decision = decided(policy, dated(1, at=self.LAST_S), self.opening(2))
        assert isinstance(decision, Formation)

    def test_who_joins_others_keeps_nobody_waiting(self) -> None:
        by_length = Curve(base=0.010, row=0.0001, element=1e-4, pair=0.0)
        driver = SchedulerDriver(policy=self.policy(curve=by_length))
        driver.advance_to(self.LAST_S)
        driver.submit(length=500)
        while not driver.dispatched:
            driver.submit(length=10)
            driver.settle()
            driver.advance_to(driver.now + 0.0001)
        assert driver.dispatched[0].rows == 1
        assert driver.now - self.LAST_S <= SLACK * self.GAP_S + 0.0002

    def test_the_largest_batch_that_is_in_time_does_not_wait(self) -> None:
        requests = dated(MOST_ROWS - 1, at=self.LAST_S, budget_s=CURVE.at(MOST_ROWS - 1, 0) + 1e-6)
        assert isinstance(decided(self.policy(), requests, self.opening(2)), Formation)


class TestEnough:
    """From 29 rows on, a batch of this model does 97 % of the work per second that 32 do."""

    NEARLY = Curve(base=0.005, row=0.001, element=0.0, pair=0.0)

    def formed(self, rate: float, curve: Curve) -> Formation:
        policy = AdaptivePolicy(32, [(rows, 0, curve.at(rows, 0)) for rows in (1, 8, 32)])
        for number in range(200):
            policy.arrived(make_request(-number), number / rate)
        opening = Opening(199 / rate, [199 / rate])
        decision = decided(policy, [make_request(i) for i in range(40)], opening)
        assert isinstance(decision, Formation)
        return decision

    @pytest.mark.parametrize(
        ("of_the_need", "all_of_them"), [(7.0, False), (1.35, False), (1.25, True)]
    )
    def test_the_last_per_cents_are_taken_where_work_is_scarce(
        self, of_the_need: float, all_of_them: bool
    ) -> None:
        alone_s, does = self.NEARLY.at(1, 0), 29 * self.NEARLY.at(1, 0) / self.NEARLY.at(29, 0)
        formed = self.formed(does / of_the_need / alone_s, self.NEARLY)
        assert (formed.rows == 32) is all_of_them

    def test_as_many_of_them_as_do_not_take_much_longer(self) -> None:
        little = Curve(base=0.0005, row=0.001, element=0.0, pair=0.0)
        enough = self.formed(100, little).rows
        needed = self.formed(990, little).rows
        assert enough < needed < 32
        assert little.at(needed, 0) <= LONGER * little.at(enough, 0) < little.at(needed + 1, 0)

    def test_not_at_the_price_of_a_much_longer_batch(self) -> None:
        next_to_nothing = Curve(base=0.0002, row=0.010, element=0.0, pair=0.0)
        assert self.formed(99, next_to_nothing).rows == 1


class TestRefusing:
    def test_a_head_that_is_too_late_leaves_before_it_costs_anything(self) -> None:
        late = make_request(1, deadline_s=0.005)
        policy = policy_under(10)
        answered = Batch(0, 0, [make_request(0)], 1, DispatchReason.IMMEDIATE, 0.0, -0.011)
        policy.observe(answered, 0.011)
        decision = decided(policy, [late, *dated(2)[1:]], Opening(0.0, [0.0]))
        assert decision == Refusal(late, Reason.PREDICTED_LATE)

    def test_a_head_that_would_cost_others_more_gives_way(self) -> None:
        # Alone in time with one row; thirty wait who are due soon after it and need large batches.
        head = make_request(1, at=-0.028, deadline_s=0.0125)
        others = [
            make_request(i, at=-0.001 * (28 - i), deadline_s=0.040 - 0.001 * (28 - i))
            for i in range(2, 28)
        ]
        decision = decided(policy_under(900), [head, *others], Opening(0.0, [0.0]))
        assert decision == Refusal(head, Reason.OVERLOADED)

    def test_a_head_gives_way_to_those_who_would_be_late_behind_it(self) -> None:
        # Behind its 11 ms three of them would be in time, without it all ten.
        head = make_request(1, deadline_s=0.0115)
        others = [make_request(i, deadline_s=0.024) for i in range(2, 12)]
        decision = decided(policy_under(10), [head, *others], Opening(0.0, [0.0]))
        assert decision == Refusal(head, Reason.OVERLOADED)

    def test_a_head_gives_way_to_those_who_are_yet_to_come(self) -> None:
        # Behind its 11 ms the two are in time; of those who come meanwhile one would not be.
        head = make_request(1, at=-0.0185, deadline_s=0.0115)
        requests = [head, *(make_request(i, deadline_s=0.030) for i in (2, 3))]
        assert isinstance(decided(policy_under(200), requests, Opening(0.0, [0.0])), Formation)
        decision = decided(policy_under(400), requests, Opening(0.0, [0.0]))
        assert decision == Refusal(head, Reason.OVERLOADED)

    def test_a_head_in_a_hurry_rides_among_others_who_are_not(self) -> None:
        # Those who are yet to come have as much time as the others, not as little as the head.
        head = make_request(1, deadline_s=0.0115)
        others = [make_request(i, deadline_s=5.0) for i in range(2, 14)]
        decision = decided(policy_under(60), [head, *others], Opening(0.0, [0.0]))
        assert isinstance(decision, Formation)
        assert decision.requests == [head]

    @pytest.mark.parametrize("later", [0, 12])
    def test_a_head_gives_way_whoever_stands_behind_those_who_gain_by_it(self, later: int) -> None:
        head = make_request(1, at=-0.0385, deadline_s=0.0115)
        gain = [make_request(i, deadline_s=0.0165) for i in range(2, 8)]
        patient = [make_request(i, deadline_s=0.0118, priority=10) for i in range(8, 8 + later)]
        requests = [head, *gain, *patient]
        decision = decided(policy_under(200), requests, Opening(0.0, [0.0]))
        assert decision == Refusal(head, Reason.OVERLOADED)

    def test_rows_are_counted_not_requests(self) -> None:
        # Without its eight rows there are only three, however many a request has on the mean.
        head = make_request(1, rows=8, at=-0.02, deadline_s=CURVE.at(8, 0) + 1e-6)
        few = [make_request(i, deadline_s=0.024) for i in (2, 3, 4)]
        decision = decided(policy_under(100), [head, *few], Opening(0.0, [0.0]))
        assert isinstance(decision, Formation)
        assert decision.requests == [head]
        many = [make_request(i, rows=4, deadline_s=0.024) for i in (2, 3, 4)]
        decision = decided(policy_under(100), [head, *many], Opening(0.0, [0.0]))
        assert decision == Refusal(head, Reason.OVERLOADED)

    def test_a_head_cut_short_rides_as_long_as_the_workers_keep_up(self) -> None:
        # Alone it does a second of work a second; by how many more are yet to come, more are lost
        # behind it or none.
        head = make_request(1, at=-0.028, deadline_s=0.0115)
        requests = [head, *(make_request(i, deadline_s=0.024) for i in range(2, 7))]
        opening = two_workers(0.0, other_s=0.012)
        assert isinstance(decided(policy_under(1.8 / 0.011), requests, opening), Formation)
        assert isinstance(decided(policy_under(600), requests, opening), Refusal)

    def test_with_two_workers_a_head_gives_way_where_fewer_are_lost_without_it(self) -> None:
        # The other worker can take two of the three by their deadline; this one all three, now.
        requests = [make_request(1, at=-0.028, deadline_s=0.0115)]
        requests += [make_request(i, deadline_s=0.014) for i in (2, 3, 4)]
        opening = two_workers(0.0, other_s=0.002)
        assert isinstance(decided(policy_under(60), requests, opening), Refusal)
        assert isinstance(decided(policy_under(60), requests[:3], opening), Formation)

    def test_with_two_workers_a_head_gives_way_below_the_need_where_anybody_is_lost(self) -> None:
        requests = [make_request(1, at=-0.028, deadline_s=0.0115)]
        requests += [make_request(i, deadline_s=0.014) for i in range(2, 10)]
        opening = two_workers(0.0)
        assert isinstance(decided(policy_under(600), requests, opening), Refusal)
        assert isinstance(decided(policy_under(600), requests[:4], opening), Formation)

    def test_with_one_worker_a_head_gives_way_where_anybody_is_lost(self) -> None:
        # Some of twelve are lost behind it, and as many without it, as far as is played.
        requests = [make_request(1, at=0.0145 - 0.030, deadline_s=0.0145)]
        requests += [
            make_request(i, at=0.001 * i, deadline_s=0.030 + 0.001 * i) for i in range(2, 14)
        ]
        alone = Opening(0.0, [0.0])
        assert isinstance(decided(policy_under(200), requests, alone), Refusal)
        assert isinstance(decided(policy_under(200), requests[:4], alone), Formation)

    def test_a_head_in_whose_place_no_larger_batch_could_begin_rides(self) -> None:
        # Three ride in time with the head, and three without it: a fourth is too late for all.
        head = make_request(1, deadline_s=CURVE.at(3, 0) + 1e-6)
        others = [make_request(i, deadline_s=CURVE.at(4, 0) - 1e-6) for i in range(2, 9)]
        decision = decided(policy_under(900), [head, *others], Opening(0.0, [0.0]))
        assert isinstance(decision, Formation)
        assert [request.id for request in decision.requests] == [1, 2, 3]

    def test_a_head_gives_way_to_a_batch_that_grows_with_the_next_one_of_a_burst(self) -> None:
        bursts = TestBursts()
        head = make_request(1, at=bursts.LAST_S - 0.028, deadline_s=bursts.LAST_S + CURVE.at(2, 0))
        others = [
            make_request(i, at=bursts.LAST_S, deadline_s=bursts.LAST_S + 0.0145) for i in (2, 3)
        ]
        going_on, over = bursts.opening(1), bursts.opening(1, after_s=1e-3)
        head.deadline_s = bursts.LAST_S + CURVE.at(2, 0) + 1e-6
        assert isinstance(decided(bursts.policy(), [head, *others], going_on), Refusal)
        head.deadline_s += 1e-3
        assert isinstance(decided(bursts.policy(), [head, *others], over), Formation)

    def test_a_head_that_costs_nobody_anything_rides(self) -> None:
        head = make_request(1, at=-0.028, deadline_s=0.0115)
        decision = decided(
            policy_under(10), [head, make_request(2, deadline_s=0.5)], Opening(0.0, [0.0])
        )
        assert isinstance(decision, Formation)
        assert [request.id for request in decision.requests] == [1]
        assert decision.reason is DispatchReason.IN_TIME

    def test_nobody_gives_way_to_a_load_that_is_not_sure(self) -> None:
        head = make_request(1, at=-0.028, deadline_s=0.0115)
        requests = [head, *(make_request(i, deadline_s=0.024) for i in range(2, 7))]
        opening = two_workers(0.0, other_s=0.012)
        steady, bursts = policy_under(600), policy_under(600, together=64)
        assert decided(steady, requests, opening) == Refusal(head, Reason.OVERLOADED)
        assert isinstance(decided(bursts, requests, opening), Formation)

    def test_a_window_cut_short_below_the_need_gives_way(self) -> None:
        policy = policy_under(900, sweep_length=10)
        head = make_request(1, at=-0.028, deadline_s=0.0125, length=10)
        others = [make_request(i, deadline_s=0.04, length=11) for i in range(2, 14)]
        decision = decided(policy, [head, *others], Opening(0.0, [0.0]))
        assert decision == Refusal(head, Reason.OVERLOADED)

    @pytest.mark.parametrize("lengths", [(0, 0), (10, 11)])
    @pytest.mark.parametrize("deadline_s", [math.inf, 60.0])
    def test_nobody_gives_way_for_deadlines_of_others(
        self, lengths: tuple[int, int], deadline_s: float
    ) -> None:
        head = make_request(1, at=-10.0, deadline_s=deadline_s, priority=1, length=lengths[0])
        others = [
            make_request(i, deadline_s=0.012 + 0.001 * i, priority=9, length=lengths[1])
            for i in range(2, 20)
        ]
        policy = policy_under(900, sweep_length=lengths[0])
        decision = decided(policy, [head, *others], Opening(0.0, [0.0]))
        assert isinstance(decision, Formation)
        assert head in decision.requests

    def test_who_is_passed_over_costs_the_head_nothing(self) -> None:
        patient = make_request(1, deadline_s=1.0, priority=1)
        tight = [make_request(i, deadline_s=0.0115, priority=5) for i in range(2, 6)]
        for requests in ([patient, tight[0]], [patient, *tight]):
            decision = decided(policy_under(900), requests, Opening(0.0, [0.0]))
            assert isinstance(decision, Formation)
            assert patient in decision.requests
            assert decision.reason is DispatchReason.IN_TIME

    def test_a_key_that_was_slow_once_is_tried_again_though_others_run(self) -> None:
        policy = policy_under(10)
        driver = SchedulerDriver(policy=policy)
        for number in range(400):
            first = number == 0
            driver.submit(key="new" if number % 10 == 0 else "old", deadline_s=driver.now + 9.0)
            driver.settle()
            driver.advance_to(driver.now + (2.0 if first else CURVE.at(1, 0)))
            driver.complete(driver.dispatched[-1].id)
        refused = 0
        for _ in range(200):
            driver.advance_to(driver.now + 0.1)
            driver.submit(key="old", deadline_s=driver.now + 1.0)
            driver.settle()
            driver.advance_to(driver.now + CURVE.at(1, 0))
            driver.complete(driver.dispatched[-1].id)
            if driver.submit(key="new", deadline_s=driver.now + 0.013):
                refused += 1
                continue
            driver.settle()
            driver.advance_to(driver.now + CURVE.at(1, 0))
            driver.complete(driver.dispatched[-1].id)
        assert refused < 100, "one slow batch refuses its key for ever"

    def test_a_batch_is_bound_to_the_worker_that_was_counted_on(self) -> None:
        policy = AdaptivePolicy(8, [(rows, 0, 0.01 + 0.001 * rows) for rows in (1, 8)])
        driver = SchedulerDriver(workers=0, policy=policy)
        driver.add_worker(0)
        driver.submit(rows=8, key="long")
        driver.settle()
        driver.in_flight[0].expected_s = 5.0
        driver.scheduler._fleet._workers[0].expected_end_s = 5.0
        driver.add_worker(1)
        for _ in range(2):
            driver.submit(rows=8)
        driver.settle()
        assert len(driver.running(1)) == 2, "one runs, one is staged"
        for _ in range(8):
            driver.submit(deadline_s=0.5)
        driver.settle()
        assert driver.running(0) == [0], "behind five seconds nobody would be in time"

    def test_somebody_whose_deadline_forbids_the_batch_is_passed_over(self) -> None:
        tight = make_request(2, deadline_s=0.0115, priority=2)
        requests = [make_request(1, deadline_s=0.5), tight, make_request(3, deadline_s=0.5)]
        decision = decided(policy_under(10), requests, Opening(0.0, [0.0]))
        assert isinstance(decision, Formation)
        assert 2 not in [request.id for request in decision.requests] or decision.rows == 1

    def test_an_arrival_that_could_not_even_ride_alone_is_refused_at_once(self) -> None:
        policy = policy_under(10)
        driver = SchedulerDriver(policy=policy)
        driver.submit(1)
        driver.settle()
        assert rejections(driver.submit(2, deadline_s=0.015)) == [(2, Reason.PREDICTED_LATE)]
        assert driver.submit(3, deadline_s=0.050) == []

    def test_without_workers_nobody_is_predicted_late(self) -> None:
        driver = SchedulerDriver(workers=0, policy=policy_under(10))
        assert driver.submit(1, deadline_s=0.050) == []


class TestUrgency:
    def test_the_earliest_deadline_goes_first(self) -> None:
        policy = policy_under(10)
        early, late = make_request(1, deadline_s=2.0), make_request(2, deadline_s=1.0)
        assert policy.urgency(late) < policy.urgency(early)

    def test_a_priority_is_worth_a_second_a_level(self) -> None:
        policy = policy_under(10)
        low = make_request(1, at=0.0, priority=LEAST_PRIORITY)
        levels = LEAST_PRIORITY - DEFAULT_PRIORITY
        before = make_request(2, at=levels * AGEING_S - 0.01, priority=DEFAULT_PRIORITY)
        after = make_request(3, at=levels * AGEING_S + 0.01, priority=DEFAULT_PRIORITY)
        assert policy.urgency(before) < policy.urgency(low) < policy.urgency(after)

    @pytest.mark.parametrize("patience_s", [math.inf, 0.2])
    def test_the_least_urgent_is_overtaken_for_a_bounded_time_only(self, patience_s: float) -> None:
        driver = SchedulerDriver(policy=policy_under(10))
        driver.submit(1, priority=LEAST_PRIORITY)
        bound_s = PATIENCE_S + AGEING_S * (LEAST_PRIORITY - 1)
        # More urgent ones than could be served keep coming, for longer than the bound.
        while 1 not in driver.outcomes:
            assert driver.now < 10 * bound_s, "it starves"
            for _ in range(3 * MOST_ROWS if driver.now < bound_s + 10.0 else 0):
                driver.submit(priority=1, deadline_s=driver.now + patience_s)
            driver.settle()
            for batch_id in list(driver.in_flight):
                driver.complete(batch_id)
            driver.advance_to(driver.now + 0.5)
        before = [r.arrival_s for batch in driver.dispatched for r in batch.requests]
        assert max(before) > 1.0, "it was overtaken"
        assert max(before) <= bound_s + 0.5


class TestCompany:
    def test_batches_beside_others_are_expected_to_take_longer(self) -> None:
        policy = policy_under(10)
        for _ in range(40):
            policy.cost.observe(4, 0, 2 * CURVE.at(4, 0), None, 2)
        driver = SchedulerDriver(workers=2, policy=policy)
        driver.submit(rows=4)
        driver.settle()
        driver.submit(rows=4)
        driver.settle()
        first, second = driver.dispatched
        assert first.running == 1
        assert second.running == 2
        assert first.expected_s is not None
        assert second.expected_s is not None
        assert second.expected_s > 1.5 * first.expected_s

    def test_timetables_of_curves_that_were_refined_are_dropped(self) -> None:
        policy = policy_under(10)
        for length in range(300):
            decided(policy, [make_request(1, length=length)], Opening(0.0, [0.0]))
        assert len(policy._timetables) <= 128
