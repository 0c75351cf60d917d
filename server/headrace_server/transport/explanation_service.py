"""The service that explains a model: what its batches cost, which it forms, and how they went."""

from __future__ import annotations

from collections.abc import Callable

from headrace.protocol import explanation_pb2 as pb
from headrace.protocol import explanation_pb2_grpc as rpc
from headrace_server.core.explanation import Explanation
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.engine import Engine
from headrace_server.engine.last_minute import Activity, BatchSample, LastMinute, Quantiles
from headrace_server.transport.failing import answering
from headrace_server.transport.gate import Gate

MAX_SAMPLES = 500
"""Batches that are told one by one: enough for a picture, some 20 kB."""


class ExplanationService(rpc.ExplanationServiceServicer):
    """`headrace.v1.ExplanationService`.

    Args:
        now: the engine's clock.
    """

    def __init__(
        self,
        engine: Engine,
        last_minute: LastMinute,
        now: Callable[[], float],
        gate: Gate | None = None,
    ) -> None:
        self._gate = gate
        self._engine = engine
        self._last_minute = last_minute
        self._now = now

    @answering
    async def ExplainModel(self, request: pb.ExplainModelRequest) -> pb.ExplainModelResponse:
        """What the policy of one version of a model goes by, and its last minute."""
        if self._gate is not None:
            self._gate.check_model(request.name)
        deployment = self._engine.find(request.name, request.version)
        explanation = deployment.explain(self._last_minute.typical_lengths(deployment))
        activity = self._last_minute.of(deployment, self._now())
        return explanation_message(deployment, explanation, activity)


def explanation_message(
    deployment: Deployment, explanation: Explanation | None, activity: Activity
) -> pb.ExplainModelResponse:
    """Everything about one version of a model; `explanation` is None under fixed rules."""
    return pb.ExplainModelResponse(
        name=deployment.name,
        version=str(deployment.version),
        max_batch_size=deployment.spec.max_batch_size,
        plan=None if explanation is None else _plan(explanation),
        last_minute=_activity(activity),
    )


def _plan(explanation: Explanation) -> pb.LearnedPlan:
    return pb.LearnedPlan(
        margin=explanation.margin,
        worthwhile=explanation.worthwhile,
        rows=explanation.rows,
        curves=[
            pb.CostCurve(
                length=plan.length, durations_s=plan.durations_s, enough_rows=plan.enough_rows
            )
            for plan in explanation.plans
        ],
    )


def _activity(activity: Activity) -> pb.Activity:
    samples = activity.samples
    step = max(1, -(-len(samples) // MAX_SAMPLES))
    return pb.Activity(
        batches=activity.batches,
        requests=activity.requests,
        batch_rows=activity.batch_rows,
        dispatches=activity.dispatches,
        refusals=activity.refusals,
        cancelled=activity.cancelled,
        padding_share=activity.padding_share,
        queue_s=_quantiles(activity.queue_s),
        compute_s=_quantiles(activity.compute_s),
        prediction_ratio=_quantiles(activity.prediction_ratio),
        samples=[_sample(sample) for sample in samples[::step]],
    )


def _quantiles(quantiles: Quantiles | None) -> pb.Quantiles | None:
    return None if quantiles is None else pb.Quantiles(**quantiles._asdict())


def _sample(sample: BatchSample) -> pb.BatchSample:
    return pb.BatchSample(
        rows=sample.rows,
        length=sample.length,
        duration_s=sample.duration_s,
        expected_s=sample.expected_s or 0.0,
    )
