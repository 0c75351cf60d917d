"""From a model's batching settings and a call to what the scheduler understands."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from headrace_server.core.adaptive import DEFAULT_PRIORITY, LEAST_PRIORITY, AdaptivePolicy
from headrace_server.core.cost import Sample
from headrace_server.core.errors import Reason
from headrace_server.core.outage import Outage
from headrace_server.core.policy import BatchPolicy, StaticPolicy, StaticSettings
from headrace_server.core.queue import QueueLimits
from headrace_server.core.request import Request
from headrace_server.core.scheduler import Scheduler
from headrace_server.core.watchdog import Watchdog
from headrace_server.engine.calls import Call
from headrace_server.models.batching import BatchingSettings

MAX_BATCH_BYTES = 1 << 28
"""Bound of a batch of several requests where the model declares none. A larger request is served
all the same, alone: nobody has said that it must not be."""


@dataclass(frozen=True, slots=True)
class SchedulingRules:
    """How the requests of one deployment are scheduled.

    `max_requests` and `max_bytes` bound its queue whatever the model's own settings say.
    """

    settings: BatchingSettings
    max_requests: int
    max_bytes: int

    def scheduler(self, sweep: Sequence[Sample] = (), load_s: float = 0.0) -> Scheduler:
        """A new scheduler that follows these rules, and plans from these timed batches and from
        how long a worker took to load the model."""
        settings = self.settings
        # A model without a batch dimension runs each request alone.
        most_rows = max(1, settings.max_batch_size)
        most_bytes = settings.max_batch_bytes or MAX_BATCH_BYTES
        policy: BatchPolicy
        if settings.static:
            policy = StaticPolicy(
                StaticSettings(
                    max_batch_size=most_rows,
                    preferred_sizes=settings.preferred_batch_sizes,
                    max_delay_s=settings.max_queue_delay_s,
                    max_batch_bytes=most_bytes,
                ),
                sweep,
            )
        else:
            policy = AdaptivePolicy(most_rows, sweep, most_bytes)
        limits = QueueLimits(
            max_requests=self.max_requests,
            max_bytes=self.max_bytes,
            max_requests_by_level={
                level: policy.max_queue_size for level, policy in settings.queue_policies.items()
            },
            default_max_requests_by_level=settings.default_queue_policy.max_queue_size,
        )
        return Scheduler(
            policy,
            limits,
            preserve_ordering=settings.preserve_ordering,
            watchdog=Watchdog(sweep, settings.hang_timeout_s),
            outage=Outage(load_s),
        )

    def request(
        self, request_id: int, key: Hashable, length: int, call: Call, now: float
    ) -> Request:
        """The scheduler's view of a call: its level, and the earliest of its deadlines.

        The `timeout` parameter counts unless a queue policy does not allow it, and never for longer
        than its default (Triton ignores it also where the policy has no default timeout). Without
        fixed rules there are the levels that the learned policy ages by.
        """
        settings = self.settings
        arrival_s = now if call.arrived_s is None else call.arrived_s
        level = self._level(call)
        policy = settings.queue_policies.get(level, settings.default_queue_policy)
        timeout_s = policy.default_timeout_s
        if call.timeout_s is not None and not settings.static:
            timeout_s = call.timeout_s
        elif call.timeout_s is not None and policy.allow_timeout_override:
            timeout_s = min(call.timeout_s, math.inf if timeout_s is None else timeout_s)
        deadline_s, late_reason, delay = math.inf, Reason.DEADLINE_EXCEEDED, False
        if settings.objective_s is not None:
            deadline_s, late_reason = arrival_s + settings.objective_s, Reason.OBJECTIVE_MISSED
        if timeout_s is not None and now + timeout_s < deadline_s:
            deadline_s, late_reason = now + timeout_s, Reason.QUEUE_TIMEOUT
            delay = policy.timeout_action == "delay"
        if call.remaining_s is not None and now + call.remaining_s < deadline_s:
            deadline_s, late_reason = now + call.remaining_s, Reason.DEADLINE_EXCEEDED
            delay = False
        return Request(
            request_id,
            key,
            call.tensors.rows,
            call.nbytes,
            arrival_s,
            deadline_s,
            late_reason,
            delay,
            level,
            length=length,
            tenant=call.tenant,
            weight=call.weight,
        )

    def refuses_late(self, call: Call) -> bool:
        """Whether a call is refused once its `timeout` parameter is up: that counts here, and does
        not just put the call behind all others."""
        settings = self.settings
        policy = settings.queue_policies.get(self._level(call), settings.default_queue_policy)
        counts = policy.allow_timeout_override or not settings.static
        return counts and policy.timeout_action == "reject"

    def _level(self, call: Call) -> int:
        """The level asked for, or the default one if there is no such level."""
        settings, level = self.settings, call.priority
        if settings.static:
            if 1 <= level <= settings.priority_levels:
                return level
            return max(1, settings.default_priority_level)
        return level if 1 <= level <= LEAST_PRIORITY else DEFAULT_PRIORITY
