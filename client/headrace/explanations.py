"""What `explain` returns: frozen values, free of protobuf. Headrace servers alone answer it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "Activity",
    "BatchSample",
    "CostCurve",
    "LearnedPlan",
    "ModelExplanation",
    "Quantiles",
]


@dataclass(frozen=True, slots=True)
class CostCurve:
    """What the server expects of batches that are padded to one length.

    Attributes:
        length: the padded length; 0 for a model whose inputs all have fixed dimensions.
        rows: numbers of rows, ascending from 1 to the largest batch.
        durations_s: expected duration for each of them, in seconds.
        enough_rows: the smallest batch that is worth it; larger ones gain next to nothing.
    """

    length: int
    rows: tuple[int, ...]
    durations_s: tuple[float, ...]
    enough_rows: int

    @property
    def gains(self) -> tuple[float, ...]:
        """For each of `rows`, the work per second relative to single rows."""
        alone_s = self.durations_s[0]
        return tuple(
            rows * alone_s / duration_s
            for rows, duration_s in zip(self.rows, self.durations_s, strict=True)
        )

    @property
    def enough_s(self) -> float:
        """The expected duration of `enough_rows` rows, in seconds."""
        return self.durations_s[self.rows.index(self.enough_rows)]

    @property
    def enough_gain(self) -> float:
        """The work per second of `enough_rows` rows relative to single rows."""
        return self.gains[self.rows.index(self.enough_rows)]


@dataclass(frozen=True, slots=True)
class LearnedPlan:
    """What a learned policy goes by.

    Attributes:
        margin: 19 of 20 batches take at most so many times what is expected.
        worthwhile: the share of the best batch's work per second that is enough.
        curves: one for each of a few lengths, ascending; empty while nothing is known.
    """

    margin: float
    worthwhile: float
    curves: tuple[CostCurve, ...]


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Values that 5, 50, 95 and 99 per cent of all do not exceed."""

    p5: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class BatchSample:
    """One batch as it went: its rows, the length that they were padded to, how long it took and
    how long it was expected to take (None where nothing was known), in seconds."""

    rows: int
    length: int
    duration_s: float
    expected_s: float | None


@dataclass(frozen=True, slots=True)
class Activity:
    """What went on in the last minute.

    Attributes:
        batches: batches that were answered.
        requests: requests that rode in them.
        batch_rows: how many of the batches had so many rows, by rows, ascending.
        dispatches: how many of them left the queue for which reason, most frequent first.
        refusals: requests that were refused or failed, by reason, most frequent first.
        cancelled: requests whose callers went away.
        padding_share: part of the batches' elements that was padding.
        queue_s: seconds from a request's arrival to the start of its batch.
        compute_s: seconds that a batch spent in its worker.
        prediction_ratio: expected over actual duration of a batch.
        samples: some of the batches one by one, oldest first.

    What there is no batch for is None.
    """

    batches: int
    requests: int
    batch_rows: Mapping[int, int]
    dispatches: Mapping[str, int]
    refusals: Mapping[str, int]
    cancelled: int
    padding_share: float
    queue_s: Quantiles | None
    compute_s: Quantiles | None
    prediction_ratio: Quantiles | None
    samples: tuple[BatchSample, ...]


@dataclass(frozen=True, slots=True)
class ModelExplanation:
    """How the batches of one version of a model are formed, and how they went.

    Attributes:
        max_batch_size: rows of the largest batch; 0 for a model without batch dimension.
        plan: what the learned policy goes by; None where fixed rules decide.
    """

    name: str
    version: str
    max_batch_size: int
    plan: LearnedPlan | None
    last_minute: Activity
