"""What calls return: frozen values, free of protobuf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt

__all__ = [
    "BatchStatistics",
    "Duration",
    "IndexEntry",
    "InferResult",
    "ModelMetadata",
    "ModelStatistics",
    "ParameterValue",
    "ServerMetadata",
    "TensorMetadata",
    "Timing",
]

ParameterValue: TypeAlias = bool | int | float | str
"""A parameter of a request or of an answer."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How a request went that asked for it, by the server's clock.

    Attributes:
        batch_rows: rows of the batch that it rode in, its own among them.
        queue_s: seconds from its arrival until its batch left.
        compute_s: seconds that the batch was in the model.
    """

    batch_rows: int
    queue_s: float
    compute_s: float

    @property
    def server_s(self) -> float:
        """Seconds in the queue and in the model together."""
        return self.queue_s + self.compute_s


@dataclass(frozen=True, slots=True, eq=False)
class InferResult(Mapping[str, npt.NDArray[Any]]):
    """The answer to one request: a mapping from the names of the outputs to their arrays.

    Arrays have the shape that the server sent, the batch dimension first. They are read-only
    views of the received bytes; use `.copy()` to write to one. A BYTES output is an object array
    of bytes, a BF16 output comes as float32.

    Example:
        >>> result = client.infer("digits", {"image": image})
        >>> result["probabilities"].argmax(axis=1)
        array([7])
    """

    outputs: Mapping[str, npt.NDArray[Any]]
    model_name: str
    model_version: str
    request_id: str = ""
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)

    @property
    def timing(self) -> Timing | None:
        """How the request went, if it had the parameter `headrace_timing` and the server is ours.

        Example:
            >>> asked = {"headrace_timing": True}
            >>> client.infer("digits", {"image": image}, parameters=asked).timing
            Timing(batch_rows=4, queue_s=0.000213, compute_s=0.001022)
        """
        names = ("headrace_batch_rows", "headrace_queue_us", "headrace_compute_us")
        if any(name not in self.parameters for name in names):
            return None
        rows, queue_us, compute_us = (int(self.parameters[name]) for name in names)
        return Timing(rows, queue_us / 1e6, compute_us / 1e6)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        try:
            return self.outputs[name]
        except KeyError:
            raise KeyError(
                f"no output '{name}'; the answer holds {', '.join(self.outputs) or 'none'}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self.outputs

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Name and release of the server, and the protocol extensions that work on it."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """One input or output. `shape` includes the batch dimension; -1 where requests may differ."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """The signature of a model, and the versions of it that are ready."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened (`count`) and how long it took in all (`ns`, nanoseconds)."""

    count: int
    ns: int


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Durations of the batches that had `batch_size` rows; `count` is the number of batches."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Statistics of one version of a model since it was loaded.

    Attributes:
        last_inference_ms: when the last request came, in milliseconds since the epoch; 0 if none.
        inference_count: rows that went through the model.
        execution_count: batches that went through the model.
        success: requests answered, from arrival to answer.
        fail: requests failed, from arrival to failure.
        queue: time spent waiting for a batch.
        compute_input: time spent bringing inputs to the model.
        compute_infer: time spent in the model.
        compute_output: time spent bringing outputs back.
        cache_hit: requests answered from the cache.
        cache_miss: requests that the cache could not answer.
        batch_stats: durations for each batch size that has occurred.
    """

    name: str
    version: str
    last_inference_ms: int
    inference_count: int
    execution_count: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration
    batch_stats: tuple[BatchStatistics, ...]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version of a model in the repository.

    `state` is READY, UNAVAILABLE, LOADING or UNLOADING, or empty if nobody asked to load it;
    `reason` says why where the state does not say enough.
    """

    name: str
    version: str
    state: str
    reason: str
