"""The policies that are simulated, as the server would set them up for a profile."""

from __future__ import annotations

from bench.simulate.profiles import Profile
from headrace_server.core.adaptive import AdaptivePolicy
from headrace_server.core.policy import BatchPolicy, StaticPolicy, StaticSettings


def learned(profile: Profile) -> BatchPolicy:
    """What serves without any settings; timers are exact here."""
    return AdaptivePolicy(profile.most_rows, profile.sweep(), timer_s=0.0)


def first_come(profile: Profile, delay_s: float = 0.0) -> BatchPolicy:
    """Whatever waits, in order of arrival, up to the largest batch: at once, or once the oldest has
    waited for so long."""
    return StaticPolicy(StaticSettings(profile.most_rows, max_delay_s=delay_s))


def one_by_one() -> BatchPolicy:
    """No batching."""
    return StaticPolicy(StaticSettings(1))
