"""Every metric that Headrace exports: name, kind, labels, help and buckets, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MODEL = ("model", "version")

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family. `name` leaves out the `_total` that the exposition adds to counters."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = MODEL
    buckets: tuple[float, ...] = ()


REQUESTS = Metric(
    "headrace_requests",
    "counter",
    "Requests by outcome: ok, cancelled, or the reason for which they were refused or failed.",
    (*MODEL, "outcome"),
)
REFUSALS = Metric(
    "headrace_refusals",
    "counter",
    "Requests refused or failed, by reason; those that never became requests have no version, and "
    "no model where it is unknown.",
    (*MODEL, "reason"),
)
REQUEST_DURATION = Metric(
    "headrace_request_duration_seconds",
    "histogram",
    "Time from the arrival of an answered request to its answer.",
    buckets=SECONDS,
)
QUEUE_DURATION = Metric(
    "headrace_queue_duration_seconds",
    "histogram",
    "Time from the arrival of an answered request to the start of its batch.",
    buckets=SECONDS,
)
COMPUTE_DURATION = Metric(
    "headrace_compute_duration_seconds",
    "histogram",
    "Time a worker spent on one batch: reading inputs, inference, writing outputs.",
    buckets=SECONDS,
)
BATCH_ROWS = Metric(
    "headrace_batch_rows", "histogram", "Rows of the batches that were run.", buckets=ROWS
)
BATCH_PADDING = Metric(
    "headrace_batch_padding_ratio",
    "histogram",
    "Share of a batch's elements that is padding.",
    buckets=SHARES,
)
PREDICTION = Metric(
    "headrace_batch_duration_prediction_ratio",
    "histogram",
    "Predicted over actual duration of a batch, where there was a prediction.",
    buckets=RATIOS,
)
DISPATCHES = Metric(
    "headrace_dispatches",
    "counter",
    "Batches sent to workers, by the reason for sending them then.",
    (*MODEL, "reason"),
)
QUEUE_REQUESTS = Metric("headrace_queue_requests", "gauge", "Requests that wait for a worker.")
QUEUE_BYTES = Metric(
    "headrace_queue_bytes", "gauge", "Bytes of the inputs of requests that wait for a worker."
)
WORKERS = Metric("headrace_workers", "gauge", "Workers by state.", (*MODEL, "state"))
RESTARTS = Metric("headrace_worker_restarts", "counter", "Workers lost and started again.")
BUILD = Metric("headrace_build_info", "gauge", "Always 1; the version is a label.", ("release",))

GPU = ("gpu_uuid",)
GPU_UTILIZATION = Metric(
    "nv_gpu_utilization", "gauge", "Share of the last moments in which the GPU was at work.", GPU
)
GPU_MEMORY_USED = Metric("nv_gpu_memory_used_bytes", "gauge", "Memory of the GPU in use.", GPU)
GPU_MEMORY_TOTAL = Metric("nv_gpu_memory_total_bytes", "gauge", "Memory of the GPU.", GPU)
GPU_POWER = Metric("nv_gpu_power_usage", "gauge", "Power that the GPU draws, in watts.", GPU)
GPU_POWER_LIMIT = Metric(
    "nv_gpu_power_limit", "gauge", "Power that the GPU may draw, in watts.", GPU
)
# It only grows, but of a counter the exposition would have the name end in `_total`.
GPU_ENERGY = Metric(
    "nv_energy_consumption",
    "gauge",
    "Energy that the GPU has used since its driver was loaded, in joules.",
    GPU,
)

ALL = (
    REQUESTS,
    REFUSALS,
    REQUEST_DURATION,
    QUEUE_DURATION,
    COMPUTE_DURATION,
    BATCH_ROWS,
    BATCH_PADDING,
    PREDICTION,
    DISPATCHES,
    QUEUE_REQUESTS,
    QUEUE_BYTES,
    WORKERS,
    RESTARTS,
    BUILD,
)

ALL_OF_GPUS = (
    GPU_UTILIZATION,
    GPU_MEMORY_USED,
    GPU_MEMORY_TOTAL,
    GPU_POWER,
    GPU_POWER_LIMIT,
    GPU_ENERGY,
)
"""Only where NVML is. Their names are Triton's."""
