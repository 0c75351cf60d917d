"""Who stays awake, for how long, and what of."""

from __future__ import annotations

import math

from headrace_server.awake import LEAST_QUOTA, MOST_S, AwakeWaiting

SHORT_S, LONG_S = MOST_S / 4, 3 * MOST_S
LOOK_S = MOST_S / 16


class World:
    """Time that passes while somebody looks or sleeps; something is found `due_s` after a wait
    began."""

    def __init__(self, quota: float = math.inf) -> None:
        self.now_s = self.due_s = 0.0
        self.looks = self.ways_given = 0
        self.slept: list[float | None] = []
        self.waiting = AwakeWaiting(lambda: self.now_s, self.give_way, quota)

    def give_way(self) -> None:
        self.ways_given += 1

    def look(self, timeout: float | None) -> bool:
        self.looks += 1
        if timeout == 0:
            self.now_s += LOOK_S
        else:
            self.slept.append(timeout)
            end_s = max(self.now_s, self.due_s)
            self.now_s = end_s if timeout is None else min(end_s, self.now_s + timeout)
        return self.now_s >= self.due_s

    def wait(self, seconds: float, timeout: float | None = None) -> bool:
        """Wait for something that comes after so many seconds; whether that was done asleep."""
        self.due_s = self.now_s + seconds
        self.slept.clear()
        found = self.waiting.wait(self.look, timeout)
        assert found == (self.now_s >= self.due_s)
        return bool(self.slept)


def test_who_knows_of_no_short_waits_sleeps() -> None:
    world = World()
    assert [world.wait(SHORT_S) for _ in range(5)] == [True] * 5
    assert world.looks == 5


def test_after_five_short_waits_it_stays_awake_and_gives_way() -> None:
    world = World()
    for _ in range(5):
        world.wait(SHORT_S)
    assert not world.wait(SHORT_S)
    assert world.looks - 5 == 4
    assert world.ways_given == 3


def test_it_falls_asleep_where_nothing_comes() -> None:
    world = World()
    for _ in range(9):
        world.wait(SHORT_S)
    began_s = world.now_s
    assert world.wait(10.0)
    assert world.slept == [None]
    assert world.now_s == began_s + 10.0
    world.wait(SHORT_S)
    for _ in range(3):
        world.wait(LONG_S)
    assert world.wait(SHORT_S), "long waits are not worth it"


def test_one_who_thinks_between_two_requests_keeps_nobody_awake() -> None:
    world = World()
    for _ in range(50):
        assert world.wait(LONG_S)
        assert world.wait(SHORT_S)
    assert world.ways_given == 0


def test_a_timeout_is_kept() -> None:
    world = World()
    for _ in range(9):
        world.wait(SHORT_S)
    assert world.wait(10.0, timeout=MOST_S / 2)
    assert world.slept == [MOST_S / 2], "a short one is slept through"
    world = World()
    for _ in range(9):
        world.wait(SHORT_S)
    assert world.wait(10.0, timeout=2.0)
    assert world.slept == [2.0 - MOST_S]


def test_what_times_out_was_no_short_wait() -> None:
    world = World()
    for _ in range(50):
        world.wait(10.0, timeout=SHORT_S)
    assert world.wait(SHORT_S)


def test_a_container_with_few_cores_sleeps_since_waking_counts_as_work() -> None:
    for quota, asleep in ((LEAST_QUOTA / 2, True), (LEAST_QUOTA, False)):
        world = World(quota)
        for _ in range(9):
            world.wait(SHORT_S)
        assert world.wait(SHORT_S) is asleep
