"""From the engine's answers to protocol messages."""

from __future__ import annotations

from collections.abc import MutableSequence

from headrace.large_messages import LARGE_BYTES, response_with
from headrace.protocol import grpc_service_pb2 as pb
from headrace_server.engine.calls import Answer
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.statistics import DeploymentStatistics, DurationSum
from headrace_server.models.spec import ModelSpec
from headrace_server.transport.regions import describe

Wanted = tuple[int, ...] | None
"""Positions of outputs in the spec; None for all of them."""


class ResponseWriter:
    """Writes the responses of one model."""

    def __init__(self, spec: ModelSpec) -> None:
        self._name = spec.name
        self._version = str(spec.version)
        self._outputs = spec.outputs
        self._all_outputs = tuple(range(len(spec.outputs)))

    def write(self, answer: Answer, request_id: str, wanted: Wanted) -> pb.ModelInferResponse:
        """The response with the outputs at these positions of the spec, in this order."""
        response = pb.ModelInferResponse()
        for tensor in answer.outputs:
            if len(tensor.data) >= LARGE_BYTES:
                contents: list[bytes] = []
                self._fill(response, contents, answer, request_id, wanted)
                return response_with(response, contents)
        self.fill(response, answer, request_id, wanted)
        return response

    def fill(
        self, response: pb.ModelInferResponse, answer: Answer, request_id: str, wanted: Wanted
    ) -> None:
        """Write into an empty response that is part of another message."""
        self._fill(response, response.raw_output_contents, answer, request_id, wanted)

    def _fill(
        self,
        response: pb.ModelInferResponse,
        contents: MutableSequence[bytes],
        answer: Answer,
        request_id: str,
        wanted: Wanted,
    ) -> None:
        response.model_name = self._name
        response.model_version = self._version
        response.id = request_id
        for position, tensor in zip(wanted or self._all_outputs, answer.outputs, strict=True):
            spec = self._outputs[position]
            output = response.outputs.add(
                name=spec.name, datatype=spec.datatype, shape=tensor.shape
            )
            # Empty where the contents are elsewhere, so that the others keep their places.
            contents.append(tensor.data)
            if tensor.span is not None:
                describe(tensor.span, output.parameters)


def add_timing(response: pb.ModelInferResponse, answer: Answer) -> None:
    """Tell the caller the rows of its batch, and its times in the queue and in the worker."""
    response.parameters["headrace_batch_rows"].int64_param = answer.batch_rows
    response.parameters["headrace_queue_us"].int64_param = round(answer.queue_s * 1e6)
    response.parameters["headrace_compute_us"].int64_param = answer.timing.compute_ns // 1_000


def statistics_message(deployment: Deployment, counts: DeploymentStatistics) -> pb.ModelStatistics:
    """The statistics of one version of a model."""
    return pb.ModelStatistics(
        name=deployment.name,
        version=str(deployment.version),
        last_inference=counts.last_inference_ms,
        inference_count=counts.inference_count,
        execution_count=counts.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(counts.success),
            fail=_duration(counts.fail),
            queue=_duration(counts.queue),
            compute_input=_duration(counts.compute_input),
            compute_infer=_duration(counts.compute_infer),
            compute_output=_duration(counts.compute_output),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=rows,
                compute_input=_duration(size.compute_input),
                compute_infer=_duration(size.compute_infer),
                compute_output=_duration(size.compute_output),
            )
            for rows, size in sorted(counts.batches.items())
        ],
    )


def _duration(total: DurationSum) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=total.count, ns=total.ns)
