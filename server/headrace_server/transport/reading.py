"""From a ModelInferRequest to a call: whatever can be wrong with it is found here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headrace.multiplexing import CANCEL_PARAMETER, REMAINING_PARAMETER
from headrace.protocol import grpc_service_pb2 as pb
from headrace.tensors import DATATYPES, TensorError, check_byte_elements, contents_to_raw
from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.calls import Call
from headrace_server.models.spec import DYNAMIC, ModelSpec, TensorSpec
from headrace_server.transport.regions import REGION_PARAMETER, SpanFinder, refuse_spans
from headrace_server.workers.executor import Parameter, RequestTensors
from headrace_server.workers.regions import RequestSpans, Span

SEQUENCE_PARAMETERS = frozenset({"sequence_id", "sequence_start", "sequence_end"})
STREAM_PARAMETERS = frozenset({"triton_enable_empty_final_response"})
TIMING_PARAMETER = "headrace_timing"
"""A request with this set to true is told its batch size and its times."""
NOT_FOR_MODELS = SEQUENCE_PARAMETERS | STREAM_PARAMETERS | {TIMING_PARAMETER, CANCEL_PARAMETER}
MAX_PARAMETER_BYTES = 16_384
"""Of one request's custom parameters, names included: they travel in frames, not in slabs."""
MAX_RANK = 32
"""Dimensions of an input: what numpy and torch take has fewer."""
MAX_BYTES_ELEMENTS = 1 << 20
"""Elements of a BYTES input of one request: each is looked at, on the loop that serves everybody
(measured: 0.15 s for so many)."""
CLASSIFICATION_PARAMETER = "classification"

MAX_LISTED = 10
"""Names that an error lists."""

MAX_EMPTY = 1 << 40
"""Elements that a tensor without any would have, were none of its dimensions 0: more than a message
could bring. Neither numpy nor torch can hold one whose strides do not fit 64 bits."""

_NO_PARAMETERS: dict[str, Parameter] = {}


@dataclass(frozen=True, slots=True)
class _Input:
    """One input of a model, with what can be worked out before any request comes."""

    position: int
    spec: TensorSpec
    itemsize: int
    fixed_shape: tuple[int, ...] | None
    row_nbytes: int
    described: str


class RequestReader:
    """Reads and validates the requests of one model, compiled once from its spec.

    Args:
        spec: the model's signature.
        find_span: finds what tensors name in place of their contents; by default that is refused.
        max_span_bytes: of one request's inputs that do not come with its message.
    """

    def __init__(
        self, spec: ModelSpec, find_span: SpanFinder = refuse_spans, max_span_bytes: int = 0
    ) -> None:
        self._spec = spec
        self._find_span = find_span
        self._max_span_bytes = max_span_bytes
        self._batched = spec.max_batch_size > 0
        self._inputs = {
            tensor.name: _compile(position, tensor, batched=self._batched)
            for position, tensor in enumerate(spec.inputs)
        }
        self._required = [i for i, tensor in enumerate(spec.inputs) if not tensor.optional]
        self._outputs = {tensor.name: i for i, tensor in enumerate(spec.outputs)}
        self._all_outputs = tuple(range(len(spec.outputs)))
        skipped = 1 if self._batched else 0
        self._one_length = [
            [(self._inputs[name].position, dimension + skipped) for name, dimension in group]
            for group in spec.one_length
        ]

    def read(self, message: pb.ModelInferRequest, remaining_s: float | None) -> Call:
        """The call that the message asks for.

        Raises:
            ServingError: with what was expected and what came.
        """
        spec = self._spec
        wanted, written = self._wanted(message) if message.outputs else (self._all_outputs, None)
        count = len(spec.inputs)
        data: list[bytes | memoryview | Span | None] = [None] * count
        shapes: list[tuple[int, ...] | None] = [None] * count
        inputs, raw = message.inputs, message.raw_input_contents
        if raw and len(raw) != len(inputs):
            self._check_raw_count(message)
        read: list[Span] = []
        rows = nbytes = shared = index = 0
        # By index: protobuf's own containers end every loop with an exception that they make.
        for number in range(len(inputs)):
            tensor = inputs[number]
            known = self._inputs.get(tensor.name)
            if known is None:
                raise self._error(
                    Reason.UNKNOWN_INPUT, input=tensor.name, names=_listed(self._inputs)
                )
            if shapes[known.position] is not None:
                raise self._error(Reason.DUPLICATE_INPUT, input=tensor.name)
            if tensor.datatype != known.spec.datatype:
                raise self._error(
                    Reason.WRONG_DATATYPE,
                    input=tensor.name,
                    got=tensor.datatype,
                    expected=known.spec.datatype,
                )
            dims = tensor.shape
            if len(dims) > MAX_RANK:
                raise self._error(
                    Reason.WRONG_SHAPE,
                    input=tensor.name,
                    expected=known.described,
                    got=f"{len(dims)} dimensions",
                )
            shape = tuple(dims[:])
            rows = self._check_shape(known, shape, rows)
            contents: bytes | memoryview | Span
            if tensor.parameters and REGION_PARAMETER in tensor.parameters:
                contents = self._from_region(known, shape, tensor, shared)
                shared += len(contents)
                if isinstance(contents, Span):
                    read.append(contents)
            elif raw:
                if tensor.HasField("contents"):
                    raise self._error(Reason.MIXED_CONTENTS, input=tensor.name)
                if index == len(raw):
                    self._check_raw_count(message)
                contents = raw[index]
                index += 1
                self._check_raw(known, shape, contents)
            else:
                contents = self._from_typed(known, shape, tensor.contents)
            data[known.position] = contents
            shapes[known.position] = shape
            nbytes += len(contents)
        if len(inputs) != count and (not inputs or any(shapes[i] is None for i in self._required)):
            raise self._error(
                Reason.WRONG_INPUT_COUNT,
                expected=count,
                got=len(inputs),
                names=_listed(self._inputs),
            )
        for group in self._one_length:
            self._check_one_length(group, shapes)
        priority, timeout_s, parameters = 0, None, _NO_PARAMETERS
        if message.parameters:
            priority, timeout_s, told_s, parameters = self._read_parameters(message)
            if told_s is not None:
                remaining_s = told_s if remaining_s is None else min(told_s, remaining_s)
        if index != len(raw):
            self._check_raw_count(message)
        spans = RequestSpans(tuple(read), written or {}) if read or written else None
        tensors = RequestTensors(max(1, rows), data, shapes, parameters, spans)
        return Call(tensors, nbytes, priority, timeout_s, remaining_s, wanted=wanted)

    def _wanted(
        self, message: pb.ModelInferRequest
    ) -> tuple[tuple[int, ...], dict[int, Span] | None]:
        """Positions in the spec of the outputs asked for, in that order, and where some of them
        go; raises `ServingError` for what the model does not have or this server not support."""
        positions: list[int] = []
        spans: dict[int, Span] = {}
        for output in message.outputs:
            position = self._outputs.get(output.name)
            if position is None:
                raise self._error(
                    Reason.UNKNOWN_OUTPUT, output=output.name, names=_listed(self._outputs)
                )
            if output.parameters and CLASSIFICATION_PARAMETER in output.parameters:
                raise ServingError(Reason.UNSUPPORTED, feature="the classification extension")
            # Else a small request could ask for any number of copies of a large answer.
            if position in positions:
                raise self._error(Reason.DUPLICATE_OUTPUT, output=output.name)
            positions.append(position)
            if output.parameters and REGION_PARAMETER in output.parameters:
                spans[position] = self._output_span(output, spans)
        return tuple(positions), spans or None

    def _output_span(
        self, output: pb.ModelInferRequest.InferRequestedOutputTensor, others: dict[int, Span]
    ) -> Span:
        """Where an output goes, which is nobody else's place: who is first would be chance."""
        span = self._find_span(output.parameters)
        for position, other in others.items():
            if span.overlaps(other):
                raise self._error(
                    Reason.REGIONS_OVERLAP,
                    output=output.name,
                    other=self._spec.outputs[position].name,
                )
        return span

    def _from_region(
        self,
        known: _Input,
        shape: tuple[int, ...],
        tensor: pb.ModelInferRequest.InferInputTensor,
        shared: int,
    ) -> bytes | Span:
        """Where an input lies. BYTES are copied at once: what was checked must not change.

        Args:
            shared: bytes of the request's inputs before this one that lie in regions.
        """
        if tensor.HasField("contents"):
            raise self._error(Reason.MIXED_CONTENTS, input=tensor.name)
        span = self._find_span(tensor.parameters)
        # A file may claim any size and take no memory; what it is copied to does.
        nbytes = shared + len(span)
        if nbytes > self._max_span_bytes:
            raise self._error(Reason.REQUEST_TOO_LARGE, limit=self._max_span_bytes, got=nbytes)
        if known.itemsize:
            self._check_raw(known, shape, span)
            return span
        contents = bytes(span.contents())
        if span.problem is not None:
            raise ServingError(Reason.REGION_UNUSABLE, problem=span.problem)
        self._check_raw(known, shape, contents)
        return contents

    def _check_shape(self, known: _Input, shape: tuple[int, ...], rows: int) -> int:
        """Returns the rows of the request; 0 for a model without a batch dimension."""
        trailing = shape[1:] if self._batched else shape
        # A fixed shape is compared as a whole: that is most requests of most models.
        if trailing != known.fixed_shape and not known.spec.admits(trailing):
            raise self._wrong_shape(known, shape)
        if 0 in trailing and math.prod(filter(None, trailing)) > MAX_EMPTY:
            raise self._wrong_shape(known, shape, f", at most {MAX_EMPTY} without its zeros")
        if not self._batched:
            return 0
        if not shape or shape[0] < 1:
            raise self._wrong_shape(known, shape)
        if rows and shape[0] != rows:
            raise self._error(
                Reason.UNEQUAL_ROWS, input=known.spec.name, expected=rows, got=shape[0]
            )
        if shape[0] > self._spec.max_batch_size:
            raise self._error(Reason.BATCH_TOO_LARGE, limit=self._spec.max_batch_size, got=shape[0])
        return shape[0]

    def _check_one_length(
        self, group: Sequence[tuple[int, int]], shapes: Sequence[tuple[int, ...] | None]
    ) -> None:
        expected = None
        for position, dimension in group:
            shape = shapes[position]
            if shape is None:
                continue
            got = shape[dimension]
            if expected is None:
                expected = got
            elif got != expected:
                raise self._error(
                    Reason.UNEQUAL_LENGTHS,
                    input=self._spec.inputs[position].name,
                    dimension=dimension,
                    expected=expected,
                    got=got,
                )

    def _check_raw_count(self, message: pb.ModelInferRequest) -> None:
        """One raw contents for each input that lies in no region."""
        expected = sum(REGION_PARAMETER not in tensor.parameters for tensor in message.inputs)
        got = len(message.raw_input_contents)
        if got != expected:
            raise self._error(Reason.WRONG_RAW_COUNT, expected=expected, got=got)

    def _check_raw(
        self, known: _Input, shape: tuple[int, ...], contents: bytes | memoryview | Span
    ) -> None:
        if known.itemsize == 0 and not isinstance(contents, Span):
            self._check_elements(known, math.prod(shape))
            try:
                check_byte_elements(contents, math.prod(shape))
            except TensorError as error:
                raise self._error(
                    Reason.MALFORMED_CONTENTS, input=known.spec.name, problem=error
                ) from None
            return
        if known.fixed_shape is not None:
            expected = known.row_nbytes * (shape[0] if self._batched else 1)
        else:
            expected = math.prod(shape) * known.itemsize
        if len(contents) != expected:
            raise self._error(
                Reason.WRONG_BYTE_COUNT,
                input=known.spec.name,
                expected=expected,
                got=len(contents),
            )

    def _check_elements(self, known: _Input, count: int) -> None:
        if count > MAX_BYTES_ELEMENTS:
            problem = f"expected at most {MAX_BYTES_ELEMENTS} elements, got {count}"
            raise self._error(Reason.MALFORMED_CONTENTS, input=known.spec.name, problem=problem)

    def _from_typed(
        self, known: _Input, shape: tuple[int, ...], contents: pb.InferTensorContents
    ) -> bytes:
        self._check_elements(known, len(contents.bytes_contents))
        try:
            raw, count = contents_to_raw(known.spec.datatype, contents)
        except TensorError as error:
            raise self._error(
                Reason.MALFORMED_CONTENTS, input=known.spec.name, problem=error
            ) from None
        if count != math.prod(shape):
            raise self._error(
                Reason.WRONG_ELEMENT_COUNT,
                input=known.spec.name,
                expected=math.prod(shape),
                got=count,
            )
        return raw

    def _read_parameters(
        self, message: pb.ModelInferRequest
    ) -> tuple[int, float | None, float | None, dict[str, Parameter]]:
        """Priority, queue timeout, time until the deadline, and what is for the model."""
        priority, timeout_s, remaining_s = 0, None, None
        custom: dict[str, Parameter] = {}
        size = 0
        for name, parameter in message.parameters.items():
            kind = parameter.WhichOneof("parameter_choice")
            if kind is None:
                raise self._bad_parameter(name, "has no value")
            value: Parameter = getattr(parameter, kind)
            if name == "priority":
                priority = self._unsigned(name, value)
            elif name == "timeout":
                microseconds = self._unsigned(name, value)
                timeout_s = microseconds / 1e6 if microseconds else None
            elif name == REMAINING_PARAMETER:
                remaining_s = self._unsigned(name, value) / 1e6
            elif name in NOT_FOR_MODELS:
                continue
            elif name.startswith("triton_"):
                raise self._bad_parameter(name, "names with the prefix 'triton_' are reserved")
            else:
                custom[name] = value
                size += len(name.encode()) + (len(value.encode()) if isinstance(value, str) else 8)
        if size > MAX_PARAMETER_BYTES:
            raise self._bad_parameter(
                name, f"custom parameters may take {MAX_PARAMETER_BYTES} bytes, got {size}"
            )
        return priority, timeout_s, remaining_s, custom

    def _unsigned(self, name: str, value: Parameter) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._bad_parameter(name, f"expected an integer, got {value!r}")
        if value < 0:
            raise self._bad_parameter(name, f"expected a value >= 0, got {value}")
        return value

    def _bad_parameter(self, name: str, problem: str) -> ServingError:
        return self._error(Reason.INVALID_PARAMETER, parameter=name, problem=problem)

    def _wrong_shape(
        self, known: _Input, shape: tuple[int, ...], besides: str = ""
    ) -> ServingError:
        return self._error(
            Reason.WRONG_SHAPE,
            input=known.spec.name,
            expected=known.described + besides,
            got=list(shape),
        )

    def _error(self, reason: Reason, **details: object) -> ServingError:
        return ServingError(reason, model=self._spec.name, **details)


def wants_timing(message: pb.ModelInferRequest) -> bool:
    """Whether the caller asks to be told how its batch went."""
    given = message.parameters
    return TIMING_PARAMETER in given and given[TIMING_PARAMETER].bool_param


def _compile(position: int, spec: TensorSpec, *, batched: bool) -> _Input:
    shape = tuple(spec.shape)
    itemsize = DATATYPES[spec.datatype].itemsize
    fixed = None if DYNAMIC in shape else shape
    return _Input(
        position,
        spec,
        itemsize,
        fixed_shape=fixed,
        row_nbytes=0 if fixed is None else math.prod(shape) * itemsize,
        described=spec.described(batched=batched),
    )


def _listed(names: Iterable[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    more = f" and {len(quoted) - MAX_LISTED} more" if len(quoted) > MAX_LISTED else ""
    return (", ".join(quoted[:MAX_LISTED]) or "none") + more
