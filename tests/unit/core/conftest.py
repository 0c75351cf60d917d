"""Hands out scheduler drivers, and checks their books once the test is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from scheduler_driver import SchedulerDriver


@pytest.fixture
def drive() -> Iterator[Callable[..., SchedulerDriver]]:
    """Makes a driver; the arguments are those of `SchedulerDriver`."""
    drivers: list[SchedulerDriver] = []

    def make(**options: object) -> SchedulerDriver:
        drivers.append(SchedulerDriver(**options))  # type: ignore[arg-type]
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.check()
