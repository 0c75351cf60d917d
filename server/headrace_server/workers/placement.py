"""Where workers go: devices, torch threads and cores, from the instance groups and the machine."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.protocol.model_config_pb2 import ModelConfig, ModelInstanceGroup
from headrace_server.quota import cpu_quota
from headrace_server.workers.executor import ModelLoadError

MAX_AUTOMATIC_CPU_WORKERS = 4
CAN_PIN = hasattr(os, "sched_setaffinity")

THREADS_PER_CPU_WORKER = 4
"""Above this many threads one more worker serves more requests than one more thread does, until
`MAX_AUTOMATIC_CPU_WORKERS` copies of the model are in memory."""


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """`count` workers per device. `gpus` empty with kind "gpu" means every GPU there is."""

    kind: Literal["auto", "cpu", "gpu"] = "auto"
    count: int = 0
    gpus: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """One worker's device and its number of torch threads; `pinned_to` are the only CPU cores that
    it may run on, none for no such limit."""

    device: str
    threads: int
    pinned_to: tuple[int, ...] = ()


def place(
    groups: Sequence[InstanceGroup],
    *,
    cuda_devices: int,
    cores: int,
    pins: Sequence[int] = (),
) -> tuple[Placement, ...]:
    """Decide how many workers a model gets, and where.

    Args:
        groups: what the configuration asks for; empty means automatic: one worker per GPU, or
            CPU workers when there is none.
        cuda_devices: GPUs that torch sees.
        cores: the cores this model may use. CPU workers times their threads stays within it,
            unless more workers than cores are asked for by number.
        pins: numbers of the cores that CPU workers are pinned to, each to as many as it has
            threads; beginning anew where there are too few. Empty: none is pinned.

    Raises:
        ModelLoadError: a GPU is asked for that this machine does not have.
    """
    devices: list[str] = []
    for group in groups or (InstanceGroup(),):
        devices += _devices_of(group, cuda_devices, cores)
    on_cpu = devices.count("cpu")
    threads = max(1, cores // on_cpu) if on_cpu else 1
    pinned = iter(dealt_out(pins, threads, on_cpu))
    return tuple(
        Placement(device, threads, next(pinned)) if device == "cpu" else Placement(device, 1)
        for device in devices
    )


def dealt_out(cores: Sequence[int], each: int, hands: int) -> list[tuple[int, ...]]:
    """Deal so many of the cores to each hand, one after the other, beginning anew where they run
    out. Nobody gets any of none, nor one twice."""
    each = min(each, len(cores))
    around = itertools.cycle(cores)
    return [tuple(sorted(itertools.islice(around, each))) for _ in range(hands)]


def _devices_of(group: InstanceGroup, cuda_devices: int, cores: int) -> list[str]:
    if group.kind == "cpu" or (group.kind == "auto" and not cuda_devices):
        automatic = min(MAX_AUTOMATIC_CPU_WORKERS, max(1, cores // THREADS_PER_CPU_WORKER))
        return ["cpu"] * (group.count or automatic)
    if not cuda_devices:
        raise ModelLoadError(
            "instance_group asks for KIND_GPU, but torch sees no CUDA device here; "
            "use KIND_CPU or KIND_AUTO"
        )
    missing = [gpu for gpu in group.gpus if gpu >= cuda_devices]
    if missing:
        raise ModelLoadError(
            f"instance_group names GPU {missing[0]}, but torch sees {cuda_devices} here "
            f"(0 to {cuda_devices - 1})"
        )
    gpus = group.gpus or range(cuda_devices)
    return [f"cuda:{gpu}" for gpu in gpus for _ in range(group.count or 1)]


def available_cores() -> int:
    """Cores this process may use: its affinity, and a container's CPU quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min(cores or 1, cpu_quota())))


def cores_to_pin(budget: int) -> tuple[int, ...]:
    """The numbers of so many cores that this process may use, the last ones: the first is the
    front's. Empty where the system does not pin (all but Linux)."""
    if not CAN_PIN:
        return ()
    return tuple(sorted(os.sched_getaffinity(0))[-budget:])


def instance_groups(config: ModelConfig | None) -> tuple[InstanceGroup, ...]:
    """The instance groups of a configuration; none means automatic."""
    if config is None:
        return ()
    kinds: dict[int, Literal["auto", "cpu", "gpu"]] = {
        ModelInstanceGroup.KIND_CPU: "cpu",
        ModelInstanceGroup.KIND_GPU: "gpu",
    }
    return tuple(
        InstanceGroup(kinds.get(group.kind, "auto"), group.count, tuple(group.gpus))
        for group in config.instance_group
    )
