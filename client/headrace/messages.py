"""Protocol messages: requests from arguments, answers from responses. Both clients use it.

No input or output here. What the caller got wrong is `InvalidInput`, what the server got wrong
`InvalidResponse`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import signature
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from headrace.answers import (
    BatchStatistics,
    Duration,
    IndexEntry,
    InferResult,
    ModelMetadata,
    ModelStatistics,
    ParameterValue,
    ServerMetadata,
    TensorMetadata,
)
from headrace.errors import InvalidInput, InvalidResponse
from headrace.explanations import (
    Activity,
    BatchSample,
    CostCurve,
    LearnedPlan,
    ModelExplanation,
    Quantiles,
)
from headrace.large_messages import LARGE_BYTES, LargeMessage, request_with
from headrace.protocol import explanation_pb2
from headrace.protocol import grpc_service_pb2 as pb
from headrace.shared_memory import SharedMemory, place_of, set_place
from headrace.tensors import (
    Buffer,
    TensorError,
    array_of,
    contents_to_raw,
    datatype_of,
    decode_tensor,
    element_count,
    encode_tensor,
    known_datatype,
    tensor_buffer,
)

__all__ = [
    "ConfigOverride",
    "Inputs",
    "Into",
    "Parameters",
    "arrays_to_send",
    "index_entries",
    "infer_request",
    "infer_result",
    "load_request",
    "model_explanation",
    "model_metadata",
    "model_request",
    "model_statistics",
    "needs_metadata",
    "server_metadata",
    "unload_request",
]

Inputs: TypeAlias = Mapping[str, npt.ArrayLike]
Into: TypeAlias = Mapping[str, npt.NDArray[Any]]
Parameters: TypeAlias = Mapping[str, ParameterValue]
ConfigOverride: TypeAlias = str | Mapping[str, Any]
Typed: TypeAlias = tuple[npt.NDArray[Any], str]

Arguments = ParamSpec("Arguments")
Request = TypeVar("Request")
ModelRequest = TypeVar(
    "ModelRequest",
    pb.ModelReadyRequest,
    pb.ModelMetadataRequest,
    pb.ModelConfigRequest,
    pb.ModelStatisticsRequest,
    explanation_pb2.ExplainModelRequest,
)

_PYTHON_VALUES = (list, tuple, bool, int, float, str, bytes)
_INT64_MAX = 2**63 - 1
_UINT64_MAX = 2**64 - 1


def _of_text(build: Callable[Arguments, Request]) -> Callable[Arguments, Request]:
    """`build`; what is no text, or none that the protocol can carry, is `InvalidInput`."""

    @wraps(build)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Request:
        try:
            return build(*args, **kwargs)
        except UnicodeEncodeError as error:
            raise InvalidInput(f"expected text that UTF-8 can express: {error}") from None
        except TypeError:  # protobuf does not say of what
            given = signature(build).bind(*args, **kwargs).arguments
            texts = [(name, given.get(name, "")) for name in ("model", "version", "request_id")]
            texts += [("the name of an input", name) for name in given.get("arrays", ())]
            for name, text in texts:
                if not isinstance(text, str):
                    raise InvalidInput(f"expected {name} as text, got {text!r}") from None
            raise

    return checked


def needs_metadata(inputs: Inputs) -> bool:
    """Whether some input is a plain Python value: only the model's metadata tells its datatype.

    Raises:
        InvalidInput: the inputs have no names.
    """
    if not isinstance(inputs, Mapping):
        raise InvalidInput(f"expected inputs by name, got a {type(inputs).__name__}")
    return any(_is_python_value(value) for value in inputs.values())


def arrays_to_send(model: str, inputs: Inputs, metadata: ModelMetadata | None) -> dict[str, Typed]:
    """Each input as an array and the datatype to send it as.

    Arrays keep the datatype they have; Python values take the one that `metadata` declares, which
    may be None only if `needs_metadata` says no.

    Raises:
        InvalidInput: an input has no such datatype, or a name that the model does not know.
    """
    declared = {tensor.name: tensor.datatype for tensor in metadata.inputs} if metadata else {}
    arrays: dict[str, Typed] = {}
    for name, value in inputs.items():
        try:
            if _is_python_value(value):
                if name not in declared:
                    raise TensorError(f"the model takes {', '.join(declared) or 'no inputs'}")
                datatype = declared[name]
                arrays[name] = array_of(value, datatype), datatype
            else:
                array = np.asarray(value)
                arrays[name] = array, datatype_of(array)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"input '{name}' for model '{model}': {error}") from error
    return arrays


@_of_text
def infer_request(
    model: str,
    arrays: Mapping[str, Typed],
    *,
    version: str = "",
    outputs: Sequence[str] | None = None,
    parameters: Parameters | None = None,
    request_id: str = "",
    priority: int | None = None,
    into: Into | None = None,
    memories: Sequence[SharedMemory] = (),
) -> pb.ModelInferRequest:
    """A request with raw contents, but for arrays that lie in one of the `memories`.

    `outputs` None asks for those that `into` names, and for all of them if it names none.

    Raises:
        InvalidInput: an element, a name, a parameter or the priority cannot be sent, or an array
            of `into` is in no memory.
    """
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    contents: list[Buffer] = []
    for name, (array, datatype) in arrays.items():
        place = place_of(memories, array, datatype) if memories else None
        if place is not None:
            tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            set_place(tensor.parameters, place, array.nbytes)
            continue
        try:
            encode = tensor_buffer if array.nbytes >= LARGE_BYTES else encode_tensor
            raw = encode(array, datatype)
        except TensorError as error:
            raise InvalidInput(f"input '{name}' for model '{model}': {error}") from error
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        contents.append(raw)
    if isinstance(outputs, str):
        raise InvalidInput(f"expected a sequence of names of outputs, got '{outputs}'")
    into = into or {}
    for name in dict.fromkeys([*(outputs or ()), *into]):
        output = request.outputs.add(name=name)
        if name in into:
            _set_destination(output, into[name], memories)
    for name, value in (parameters or {}).items():
        _set_parameter(request.parameters[name], name, value)
    if priority is not None:
        if not 0 <= priority <= _UINT64_MAX:
            raise InvalidInput(f"expected a priority from 0 to {_UINT64_MAX}, got {priority}")
        request.parameters["priority"].uint64_param = priority
    request = request_with(request, contents)
    if isinstance(request, LargeMessage):
        request.SerializeToString()  # now, while the arrays are what the caller meant
    return request


def infer_result(response: pb.ModelInferResponse, into: Into | None = None) -> InferResult:
    """The arrays of a response, from raw or typed contents, or from where `into` had them written.

    Raises:
        InvalidResponse: contents and shapes disagree.
    """
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise InvalidResponse(
            f"expected raw contents for {len(response.outputs)} outputs, got {len(raw)}"
        )
    outputs: dict[str, npt.NDArray[Any]] = {}
    data: Buffer
    for index, output in enumerate(response.outputs):
        try:
            if into and output.name in into:
                data = _written(output, into[output.name])
            elif raw:
                data = raw[index]
            else:
                data = contents_to_raw(output.datatype, output.contents)[0]
            outputs[output.name] = decode_tensor(output.datatype, tuple(output.shape), data)
        except TensorError as error:
            raise InvalidResponse(f"output '{output.name}': {error}") from error
    return InferResult(
        outputs,
        response.model_name,
        response.model_version,
        response.id,
        {name: _parameter(value) for name, value in response.parameters.items()},
    )


def _set_destination(
    output: pb.ModelInferRequest.InferRequestedOutputTensor,
    array: npt.NDArray[Any],
    memories: Sequence[SharedMemory],
) -> None:
    for memory in memories:
        offset = memory.offset_of(array)
        if offset is not None:
            set_place(output.parameters, (memory, offset), array.nbytes)
            return
    raise InvalidInput(
        f"output '{output.name}': expected an array made by this client's shared_memory, whole "
        "rows of one at least, got another"
    )


def _written(
    output: pb.ModelInferResponse.InferOutputTensor, array: npt.NDArray[Any]
) -> memoryview:
    """The bytes of an output, from the array that it was written into."""
    shape = tuple(output.shape)
    nbytes = element_count(shape) * known_datatype(output.datatype).itemsize
    if output.datatype == "BYTES":  # only who wrote it knows
        nbytes = output.parameters["shared_memory_byte_size"].int64_param
    return array.reshape(-1).view(np.uint8).data[:nbytes]


def server_metadata(response: pb.ServerMetadataResponse) -> ServerMetadata:
    """What the server is."""
    return ServerMetadata(response.name, response.version, tuple(response.extensions))


def model_metadata(response: pb.ModelMetadataResponse) -> ModelMetadata:
    """The signature of a model."""

    def tensors(
        entries: Sequence[pb.ModelMetadataResponse.TensorMetadata],
    ) -> tuple[TensorMetadata, ...]:
        return tuple(
            TensorMetadata(entry.name, entry.datatype, tuple(entry.shape)) for entry in entries
        )

    return ModelMetadata(
        response.name,
        tuple(response.versions),
        response.platform,
        tensors(response.inputs),
        tensors(response.outputs),
    )


def model_statistics(response: pb.ModelStatisticsResponse) -> list[ModelStatistics]:
    """Statistics of each version of each model."""
    return [_statistics(entry) for entry in response.model_stats]


def model_explanation(response: explanation_pb2.ExplainModelResponse) -> ModelExplanation:
    """How a model's batches are formed, and how they went.

    Raises:
        InvalidResponse: a curve does not fit the rows that it belongs to.
    """
    return ModelExplanation(
        response.name,
        response.version,
        response.max_batch_size,
        _plan(response.plan) if response.HasField("plan") else None,
        _activity(response.last_minute),
    )


@_of_text
def model_request(kind: type[ModelRequest], model: str, version: str) -> ModelRequest:
    """A question about a model. Raises `InvalidInput` for a name or version that is no text."""
    return kind(name=model, version=version)


@_of_text
def load_request(model: str, config: ConfigOverride | None) -> pb.RepositoryModelLoadRequest:
    """A request to load a model. `config` is a configuration: JSON, or what becomes JSON.

    Raises:
        InvalidInput: the name or the configuration is no text.
    """
    request = pb.RepositoryModelLoadRequest(model_name=model)
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        request.parameters["config"].string_param = text
    return request


@_of_text
def unload_request(model: str) -> pb.RepositoryModelUnloadRequest:
    """A request to unload a model. Raises `InvalidInput` for a name that is no text."""
    return pb.RepositoryModelUnloadRequest(model_name=model)


def index_entries(response: pb.RepositoryIndexResponse) -> list[IndexEntry]:
    """Each version of each model in the repository."""
    return [
        IndexEntry(entry.name, entry.version, entry.state, entry.reason)
        for entry in response.models
    ]


def _is_python_value(value: object) -> bool:
    # numpy's float64, str_ and bytes_ are also Python's, but they know their dtype.
    return isinstance(value, _PYTHON_VALUES) and not isinstance(value, np.generic)


def _set_parameter(parameter: pb.InferParameter, name: str, value: object) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int) and -_INT64_MAX - 1 <= value <= _INT64_MAX:
        parameter.int64_param = value
    elif isinstance(value, int) and 0 <= value <= _UINT64_MAX:
        parameter.uint64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    elif isinstance(value, str):
        try:
            parameter.string_param = value
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"parameter '{name}': expected text that UTF-8 can express: {error}"
            ) from None
    else:
        raise InvalidInput(
            f"parameter '{name}': expected a bool, an int of 64 bits, a float or a str, "
            f"got {value!r}"
        )


def _parameter(parameter: pb.InferParameter) -> ParameterValue:
    choice = parameter.WhichOneof("parameter_choice")
    value: ParameterValue = getattr(parameter, choice) if choice else ""
    return value


def _duration(entry: pb.StatisticDuration) -> Duration:
    return Duration(entry.count, entry.ns)


def _statistics(entry: pb.ModelStatistics) -> ModelStatistics:
    times = entry.inference_stats
    return ModelStatistics(
        name=entry.name,
        version=entry.version,
        last_inference_ms=entry.last_inference,
        inference_count=entry.inference_count,
        execution_count=entry.execution_count,
        success=_duration(times.success),
        fail=_duration(times.fail),
        queue=_duration(times.queue),
        compute_input=_duration(times.compute_input),
        compute_infer=_duration(times.compute_infer),
        compute_output=_duration(times.compute_output),
        cache_hit=_duration(times.cache_hit),
        cache_miss=_duration(times.cache_miss),
        batch_stats=tuple(
            BatchStatistics(
                batch.batch_size,
                _duration(batch.compute_input),
                _duration(batch.compute_infer),
                _duration(batch.compute_output),
            )
            for batch in entry.batch_stats
        ),
    )


def _plan(entry: explanation_pb2.LearnedPlan) -> LearnedPlan:
    rows = tuple(entry.rows)
    for curve in entry.curves:
        if len(curve.durations_s) != len(rows) or curve.enough_rows not in rows:
            raise InvalidResponse(
                f"expected a curve over {len(rows)} numbers of rows, got "
                f"{len(curve.durations_s)} durations and an operating point of {curve.enough_rows}"
            )
    return LearnedPlan(
        entry.margin,
        entry.worthwhile,
        tuple(
            CostCurve(curve.length, rows, tuple(curve.durations_s), curve.enough_rows)
            for curve in entry.curves
        ),
    )


def _activity(entry: explanation_pb2.Activity) -> Activity:
    def quantiles(field: Literal["queue_s", "compute_s", "prediction_ratio"]) -> Quantiles | None:
        if not entry.HasField(field):
            return None
        values: explanation_pb2.Quantiles = getattr(entry, field)
        return Quantiles(values.p5, values.p50, values.p95, values.p99)

    return Activity(
        batches=entry.batches,
        requests=entry.requests,
        batch_rows=dict(sorted(entry.batch_rows.items())),
        dispatches=_most_first(entry.dispatches),
        refusals=_most_first(entry.refusals),
        cancelled=entry.cancelled,
        padding_share=entry.padding_share,
        queue_s=quantiles("queue_s"),
        compute_s=quantiles("compute_s"),
        prediction_ratio=quantiles("prediction_ratio"),
        samples=tuple(
            BatchSample(batch.rows, batch.length, batch.duration_s, batch.expected_s or None)
            for batch in entry.samples
        ),
    )


def _most_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
