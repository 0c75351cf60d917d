"""From batching settings and calls to requests with levels and deadlines."""

from __future__ import annotations

import math
from typing import Any

import pytest

from engine_stage import call_of
from headrace_server.core.adaptive import AdaptivePolicy
from headrace_server.core.errors import Reason
from headrace_server.core.policy import StaticPolicy
from headrace_server.core.request import Request
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.models.batching import BatchingSettings, QueuePolicy


def rules(**settings: Any) -> SchedulingRules:
    return SchedulingRules(BatchingSettings(8, **{"static": True, **settings}), 100, 1 << 20)


def request(rules: SchedulingRules, **call: Any) -> Request:
    return rules.request(1, "key", 7, call_of(b"aa", **call), 10.0)


class TestPolicy:
    def test_a_model_without_batching_settings_gets_the_learned_policy(self) -> None:
        assert isinstance(rules(static=False).scheduler()._policy, AdaptivePolicy)
        assert isinstance(rules().scheduler()._policy, StaticPolicy)

    def test_a_model_without_batch_dimension_runs_requests_alone(self) -> None:
        for static in (False, True):
            alone = SchedulingRules(BatchingSettings(0, static=static), 100, 1 << 20)
            assert alone.scheduler()._policy.most_rows == 1


class TestLevel:
    levels = rules(priority_levels=3, default_priority_level=2)

    @pytest.mark.parametrize(("asked", "given"), [(0, 2), (1, 1), (3, 3), (4, 2), (2**64 - 1, 2)])
    def test_the_default_level_stands_in_for_one_that_is_not_there(
        self, asked: int, given: int
    ) -> None:
        assert request(self.levels, priority=asked).priority == given

    def test_without_levels_everyone_is_equal(self) -> None:
        assert {request(rules(), priority=p).priority for p in (0, 1, 5)} == {1}

    @pytest.mark.parametrize(
        ("asked", "given"), [(0, 5), (1, 1), (5, 5), (10, 10), (11, 5), (2**64 - 1, 5)]
    )
    def test_the_learned_policy_has_levels_of_its_own(self, asked: int, given: int) -> None:
        assert request(rules(static=False), priority=asked).priority == given


class TestObjective:
    @pytest.mark.parametrize(
        ("call", "deadline_s", "reason"),
        [
            ({}, 12.0, Reason.OBJECTIVE_MISSED),
            ({"arrived_s": 9.5}, 11.5, Reason.OBJECTIVE_MISSED),
            ({"timeout_s": 1.0}, 11.0, Reason.QUEUE_TIMEOUT),
            ({"timeout_s": 3.0}, 12.0, Reason.OBJECTIVE_MISSED),
            ({"remaining_s": 1.0}, 11.0, Reason.DEADLINE_EXCEEDED),
            ({"remaining_s": 3.0}, 12.0, Reason.OBJECTIVE_MISSED),
            ({"remaining_s": 1.0, "timeout_s": 0.5}, 10.5, Reason.QUEUE_TIMEOUT),
            ({"remaining_s": 1.0, "timeout_s": 1.5}, 11.0, Reason.DEADLINE_EXCEEDED),
        ],
    )
    def test_the_earliest_deadline_counts(
        self, call: dict[str, float], deadline_s: float, reason: Reason
    ) -> None:
        got = request(rules(static=False, objective_s=2.0), **call)
        assert (got.deadline_s, got.late_reason) == (deadline_s, reason)
        assert not got.delay_when_late


class TestDeadline:
    def test_there_is_none_by_default(self) -> None:
        assert request(rules()).deadline_s == math.inf

    def test_the_callers_own_deadline_counts(self) -> None:
        got = request(rules(), remaining_s=2.0)
        assert (got.deadline_s, got.late_reason) == (12.0, Reason.DEADLINE_EXCEEDED)

    def test_a_queue_policy_sets_a_timeout(self) -> None:
        got = request(rules(default_queue_policy=QueuePolicy(default_timeout_s=3.0)))
        assert (got.deadline_s, got.late_reason) == (13.0, Reason.QUEUE_TIMEOUT)
        assert not got.delay_when_late

    def test_late_requests_may_be_delayed_instead(self) -> None:
        policy = QueuePolicy("delay", default_timeout_s=3.0)
        assert request(rules(default_queue_policy=policy)).delay_when_late

    def test_a_level_may_have_a_policy_of_its_own(self) -> None:
        levels = rules(
            priority_levels=2,
            default_priority_level=2,
            queue_policies={1: QueuePolicy(default_timeout_s=1.0)},
            default_queue_policy=QueuePolicy(default_timeout_s=5.0),
        )
        assert request(levels, priority=1).deadline_s == 11.0
        assert request(levels, priority=2).deadline_s == 15.0

    def test_a_timeout_that_the_policy_does_not_allow_is_ignored(self) -> None:
        assert request(rules(), timeout_s=1.0).deadline_s == math.inf

    def test_a_timeout_counts_where_the_policy_allows_it(self) -> None:
        allowing = rules(default_queue_policy=QueuePolicy(allow_timeout_override=True))
        got = request(allowing, timeout_s=1.0)
        assert (got.deadline_s, got.late_reason) == (11.0, Reason.QUEUE_TIMEOUT)

    def test_a_timeout_shortens_that_of_the_policy_and_never_lengthens_it(self) -> None:
        policy = QueuePolicy(default_timeout_s=3.0, allow_timeout_override=True)
        allowing = rules(default_queue_policy=policy)
        assert request(allowing, timeout_s=1.0).deadline_s == 11.0
        assert request(allowing, timeout_s=60.0).deadline_s == 13.0

    def test_a_timeout_counts_where_there_is_no_policy(self) -> None:
        assert request(rules(static=False), timeout_s=1.0).deadline_s == 11.0

    @pytest.mark.parametrize(
        ("settings", "refused"),
        [
            ({}, False),
            ({"static": False}, True),
            ({"default_queue_policy": QueuePolicy(allow_timeout_override=True)}, True),
            ({"default_queue_policy": QueuePolicy("delay", allow_timeout_override=True)}, False),
        ],
    )
    def test_a_timeout_refuses_where_it_counts_and_nobody_is_delayed(
        self, settings: dict[str, Any], refused: bool
    ) -> None:
        assert rules(**settings).refuses_late(call_of(b"aa", timeout_s=1.0)) is refused

    def test_a_timeout_refuses_by_the_policy_of_its_level(self) -> None:
        levels = rules(
            priority_levels=2,
            default_priority_level=2,
            queue_policies={1: QueuePolicy(allow_timeout_override=True)},
        )
        answers = [levels.refuses_late(call_of(b"aa", priority=level)) for level in (1, 2, 0)]
        assert answers == [True, False, False]

    def test_the_earlier_of_two_deadlines_counts(self) -> None:
        policy = QueuePolicy("delay", default_timeout_s=3.0)
        got = request(rules(default_queue_policy=policy), remaining_s=2.0)
        assert (got.deadline_s, got.late_reason) == (12.0, Reason.DEADLINE_EXCEEDED)
        assert not got.delay_when_late, "the caller would not be there any more"

    def test_time_spent_before_the_queue_counts_as_waiting(self) -> None:
        got = request(rules(), arrived_s=9.5)
        assert got.arrival_s == 9.5


def test_what_the_scheduler_needs_is_passed_on() -> None:
    got = request(rules())
    assert (got.id, got.key, got.length, got.rows, got.nbytes) == (1, "key", 7, 1, 2)
    assert got.arrival_s == 10.0


def test_bounds_of_levels_are_passed_on() -> None:
    levels = rules(
        priority_levels=2,
        default_priority_level=1,
        queue_policies={1: QueuePolicy(max_queue_size=1)},
        default_queue_policy=QueuePolicy(max_queue_size=2),
    )
    queue = levels.scheduler().queue
    for level, bound in ((1, 1), (2, 2)):
        for request_id in range(bound):
            one = levels.request(10 * level + request_id, None, 0, call_of(b"aa"), 0.0)
            one.priority = level
            assert queue.has_room_for(one)
            queue.push(one)
        assert not queue.has_room_for(one)
