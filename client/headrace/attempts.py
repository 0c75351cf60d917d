"""The attempts of one call: the time that is left for it, and whether another one follows."""

from __future__ import annotations

import time
from collections.abc import Callable
from numbers import Real
from random import Random
from types import EllipsisType
from typing import TypeAlias

import grpc

from headrace.errors import InvalidInput, ServerError, error_of_code
from headrace.retry import RetryPolicy

__all__ = ["MAX_TIMEOUT_S", "Attempts", "Timeout"]

Timeout: TypeAlias = float | EllipsisType | None
"""Seconds that a call may take: `...` for the client's default, None for no limit."""

MAX_TIMEOUT_S = 1e9
"""32 years; more is no limit. gRPC's own count overflows at about 7e9: such a deadline is over."""


class Attempts:
    """Counts the attempts of one call against its policy and its timeout.

    Both clients drive it: take `remaining_s` as the deadline of an attempt, hand a failure to
    `delay_after`, and wait. A call that needs a second one to be made (the model's metadata)
    shares these attempts with it, so that the caller's timeout bounds both together.

    Raises:
        InvalidInput: the timeout is no number.
        DeadlineExceeded: it is 0 or less. gRPC tries such calls, and says now that and now
            whatever else went wrong.
    """

    __slots__ = ("_clock", "_deadline", "_failed", "_policy", "_random")

    def __init__(
        self,
        policy: RetryPolicy,
        timeout_s: float | None,
        random: Random,
        clock: Callable[[], float] = time.monotonic,
        request_id: str = "",
    ) -> None:
        self._policy = policy
        self._random = random
        self._clock = clock
        self._deadline: float | None = None
        if timeout_s is not None:
            # NaN differs from itself; math.isnan takes no integer that is no float.
            if not isinstance(timeout_s, Real) or timeout_s != timeout_s:
                raise InvalidInput(f"expected a timeout in seconds, got {timeout_s!r}")
            if timeout_s <= 0:
                message = f"the timeout of {timeout_s} s had passed before the call began"
                code = grpc.StatusCode.DEADLINE_EXCEEDED
                raise error_of_code(code, message, request_id=request_id)
            if timeout_s <= MAX_TIMEOUT_S:
                self._deadline = clock() + timeout_s
        self._failed = 0

    def remaining_s(self) -> float | None:
        """Seconds until the call's deadline, at least 0; None if it has none."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def delay_after(self, error: ServerError) -> float | None:
        """Seconds to wait before the next attempt; None if there should be none."""
        self._failed += 1
        return self._policy.delay(self._failed, error, self.remaining_s(), self._random)
