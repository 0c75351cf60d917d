"""The server's view of a deadline is never later than the caller's."""

from __future__ import annotations

import pytest

from headrace_server.transport.deadlines import remaining_s


@pytest.mark.parametrize(
    ("waits_s", "told_s"), [(101.0, 102.0), (1.001, 1.01), (0.1001, 0.101), (5.0, 5.0)]
)
def test_a_deadline_that_grpc_rounded_up_is_not_later_than_the_callers(
    waits_s: float, told_s: float
) -> None:
    taken_s = remaining_s(told_s)
    assert taken_s is not None
    assert 0.98 * waits_s <= taken_s <= waits_s


def test_no_deadline_stays_none() -> None:
    assert remaining_s(None) is None
