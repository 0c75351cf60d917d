"""What the machine's GPUs say of themselves when somebody scrapes: metrics with Triton's names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from headrace_server.telemetry import names

log = logging.getLogger("headrace.telemetry")


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU at one moment; None is what it does not tell. `utilization` is a share of 1,
    `energy_j` counts from the load of the driver."""

    uuid: str
    utilization: float | None = None
    memory_used_bytes: float | None = None
    memory_total_bytes: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None


ReadGpus = Callable[[], Sequence[GpuReading]]
"""Asks every GPU. May take milliseconds, and raises nothing."""

_VALUES: tuple[tuple[names.Metric, Callable[[GpuReading], float | None]], ...] = (
    (names.GPU_UTILIZATION, lambda gpu: gpu.utilization),
    (names.GPU_MEMORY_USED, lambda gpu: gpu.memory_used_bytes),
    (names.GPU_MEMORY_TOTAL, lambda gpu: gpu.memory_total_bytes),
    (names.GPU_POWER, lambda gpu: gpu.power_w),
    (names.GPU_POWER_LIMIT, lambda gpu: gpu.power_limit_w),
    (names.GPU_ENERGY, lambda gpu: gpu.energy_j),
)


class GpuMetrics(Collector):
    """Reads the GPUs once for each scrape, and never otherwise."""

    def __init__(self, read: ReadGpus) -> None:
        self._read = read

    def describe(self) -> Iterable[Family]:
        """The families without samples: registering asks no GPU."""
        return [_family(metric) for metric, _ in _VALUES]

    def collect(self) -> Iterator[Family]:
        """The families, each with the GPUs that tell their value."""
        gpus = self._read()
        for metric, value_of in _VALUES:
            family = _family(metric)
            for gpu in gpus:
                value = value_of(gpu)
                if value is not None:
                    family.add_metric((gpu.uuid,), value)
            yield family


def gpu_metrics() -> GpuMetrics | None:
    """Metrics of this machine's GPUs; None without GPUs, their driver, or the extra `gpu`."""
    try:
        import pynvml
    except ImportError:
        return None
    read = nvml_reader(pynvml)
    return None if read is None else GpuMetrics(read)


def nvml_reader(nvml: Any) -> ReadGpus | None:
    """What asks the GPUs through NVML, the module `pynvml`; None where that finds none."""
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    except nvml.NVMLError as error:
        log.debug("no metrics of GPUs: %s", error)
        return None

    def ask(question: Callable[[Any], Any], handle: Any) -> Any:
        # Not every GPU has a sensor for everything, and one may fall off the bus.
        try:
            return question(handle)
        except nvml.NVMLError:
            return None

    def read() -> list[GpuReading]:
        readings = []
        for uuid, handle in zip(uuids, handles, strict=True):
            rates = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
            memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
            readings.append(
                GpuReading(
                    uuid,
                    None if rates is None else rates.gpu / 100,
                    None if memory is None else memory.used,
                    None if memory is None else memory.total,
                    _thousandth(ask(nvml.nvmlDeviceGetPowerUsage, handle)),
                    _thousandth(ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
                    _thousandth(ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)),
                )
            )
        return readings

    return read if handles else None


def _family(metric: names.Metric) -> GaugeMetricFamily:
    return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


def _thousandth(value: int | None) -> float | None:
    """NVML counts in milliwatts and millijoules."""
    return None if value is None else value / 1_000


def _text(value: str | bytes) -> str:
    """Older releases of the module return bytes."""
    return value.decode() if isinstance(value, bytes) else value
