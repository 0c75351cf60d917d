"""What a model's configuration says about batching and queueing, checked and in plain values.

Front-safe: standard library and protobuf only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NoReturn, TypeVar

from headrace.protocol.model_config_pb2 import ModelConfig, ModelQueuePolicy
from headrace_server.models.config_text import Locate, locate_nowhere
from headrace_server.models.errors import ConfigError

OBJECTIVE = "objective_ms"
MAX_BATCH_BYTES = "max_batch_bytes"
HANG_TIMEOUT = "hang_timeout_s"
"""Parameters of a config.pbtxt that set what Triton's batching block has no field for."""

Number = TypeVar("Number", int, float)

_MICROSECONDS = 1e-6


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How long a request may wait, and how many may.

    ``default_timeout_s`` None means no timeout; ``max_queue_size`` 0 means no bound of its own.
    A request that has waited too long is refused (``reject``) or goes behind all others
    of its level (``delay``).
    """

    timeout_action: Literal["reject", "delay"] = "reject"
    default_timeout_s: float | None = None
    allow_timeout_override: bool = False
    max_queue_size: int = 0


@dataclass(frozen=True, slots=True)
class BatchingSettings:
    """The batching of one model.

    ``static`` says that the configuration has a ``dynamic_batching`` block: then the other fields
    mean what they mean in Triton. Without one, Triton never joins requests; Headrace batches by
    its own adaptive policy, and the other fields have their defaults.

    Priority level 1 is the most urgent; ``priority_levels`` 0 means that there are no levels.
    ``queue_policies`` holds the levels that have a policy of their own.

    ``objective_s`` is how long a request may take that brings no deadline of its own; None: as
    long as it takes. Fixed rules know no objective.

    ``max_batch_bytes`` bounds the inputs of a batch once they are padded, and so those of a single
    request; None: no request is too large, and batches stay within what the policy thinks fit. What
    the server adds to what clients sent, masks and defaults, does not count.

    ``hang_timeout_s`` is how long a batch may run before its worker counts as hung; None: as the
    cost model expects it.
    """

    max_batch_size: int
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_s: float = 0.0
    static: bool = False
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    queue_policies: Mapping[int, QueuePolicy] = field(default_factory=lambda: MappingProxyType({}))
    objective_s: float | None = None
    max_batch_bytes: int | None = None
    hang_timeout_s: float | None = None


def batching_settings(
    config: ModelConfig | None, max_batch_size: int, locate: Locate = locate_nowhere
) -> BatchingSettings:
    """Derive the settings from a configuration and the model's own ``max_batch_size``.

    Raises:
        ConfigError: a preferred size that no batch can have; priority levels that contradict
            each other or ``preserve_ordering``; an objective, a bound or a timeout that is none,
            or an objective beside fixed rules.
    """
    if config is None:
        return BatchingSettings(max_batch_size)
    objective, most_bytes, hang_timeout_s = batching_parameters(config, locate)
    if not config.HasField("dynamic_batching"):
        return BatchingSettings(
            max_batch_size,
            objective_s=objective,
            max_batch_bytes=most_bytes,
            hang_timeout_s=hang_timeout_s,
        )
    block = config.dynamic_batching

    def refuse(name: str, message: str) -> NoReturn:
        raise ConfigError(f"{locate(f'dynamic_batching.{name}')} {message}")

    for size in block.preferred_batch_size:
        if not 1 <= size <= max_batch_size:
            refuse(
                "preferred_batch_size",
                f"must be within 1 and max_batch_size {max_batch_size}, got {size}",
            )
    levels, default = block.priority_levels, block.default_priority_level
    if levels and not 1 <= default <= levels:
        refuse("default_priority_level", f"must be within 1 and {levels}, got {default}")
    if default and not levels:
        refuse("default_priority_level", f"is {default}, but there are no priority_levels")
    if block.preserve_ordering and levels > 1:
        refuse("preserve_ordering", f"cannot hold across {levels} priority_levels; drop one")
    for level in block.priority_queue_policy:
        if not 1 <= level <= levels:
            refuse("priority_queue_policy", f"is for level {level}, expected 1 to {levels}")

    return BatchingSettings(
        max_batch_size=max_batch_size,
        preferred_batch_sizes=tuple(sorted(set(block.preferred_batch_size))),
        max_queue_delay_s=block.max_queue_delay_microseconds * _MICROSECONDS,
        static=True,
        preserve_ordering=block.preserve_ordering,
        priority_levels=levels,
        default_priority_level=default,
        default_queue_policy=_queue_policy(block.default_queue_policy),
        queue_policies=MappingProxyType(
            {level: _queue_policy(policy) for level, policy in block.priority_queue_policy.items()}
        ),
        max_batch_bytes=most_bytes,
        hang_timeout_s=hang_timeout_s,
    )


def batching_parameters(
    config: ModelConfig, locate: Locate = locate_nowhere
) -> tuple[float | None, int | None, float | None]:
    """What the parameters ``objective_ms``, ``max_batch_bytes`` and ``hang_timeout_s`` say: the
    latency objective in seconds, the most bytes of a batch, and the seconds after which one counts
    as a hang; None where they are not given.

    Raises:
        ConfigError: one is no positive number, or the objective stands beside ``dynamic_batching``.
    """

    def refuse(name: str, message: str) -> NoReturn:
        where = locate(f'parameters["{name}"]')
        raise ConfigError(f"{where} {message}")

    objective_s = most_bytes = hang_timeout_s = None
    if OBJECTIVE in config.parameters:
        if config.HasField("dynamic_batching"):
            refuse(
                OBJECTIVE,
                "is for models that batch by what batches cost, but dynamic_batching follows "
                "fixed rules; drop one",
            )
        text = config.parameters[OBJECTIVE].string_value
        milliseconds = _number(float, text)
        if milliseconds is None or not 0 < milliseconds < math.inf:
            refuse(OBJECTIVE, f"must be a positive number of milliseconds, got '{text}'")
        objective_s = milliseconds / 1_000
    if MAX_BATCH_BYTES in config.parameters:
        text = config.parameters[MAX_BATCH_BYTES].string_value
        most_bytes = _number(int, text)
        if most_bytes is None or most_bytes < 1:
            refuse(MAX_BATCH_BYTES, f"must be a positive whole number of bytes, got '{text}'")
    if HANG_TIMEOUT in config.parameters:
        text = config.parameters[HANG_TIMEOUT].string_value
        hang_timeout_s = _number(float, text)
        if hang_timeout_s is None or not 0 < hang_timeout_s < math.inf:
            refuse(HANG_TIMEOUT, f"must be a positive number of seconds, got '{text}'")
    return objective_s, most_bytes, hang_timeout_s


def _number(kind: Callable[[str], Number], text: str) -> Number | None:
    try:
        return kind(text)
    except ValueError:
        return None


def _queue_policy(policy: ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        timeout_action="delay" if policy.timeout_action == ModelQueuePolicy.DELAY else "reject",
        default_timeout_s=policy.default_timeout_microseconds * _MICROSECONDS or None,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )
