"""Hypothesis strategies for requests: valid ones of the checked models, spoilt field by field."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from bench.checked_models import FUZZED
from headrace import messages
from headrace.multiplexing import CANCEL_PARAMETER, REMAINING_PARAMETER
from headrace.protocol import grpc_service_pb2 as pb
from headrace.tensors import DATATYPES, datatype_of, decode_tensor

Request = pb.ModelInferRequest
Tensor = Request.InferInputTensor | Request.InferRequestedOutputTensor

NAMES = (
    *(model.name for model in FUZZED),
    *("x", "ids", "mask", "words", "half", "flag", "byte", "table", "text", "codes", "y", "upper"),
)
INTEGERS = st.one_of(
    st.sampled_from((0, 1, -1, 2, 3, 64, 65, 128, 129, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1)),
    st.integers(-(2**63), 2**63 - 1),
)
WORD = st.one_of(
    st.sampled_from(("", *NAMES)), st.text(max_size=8), st.just("long" * 1_000), st.just("\0")
)
PARAMETERS = st.one_of(
    st.sampled_from(
        (
            *("priority", "timeout", "sequence_id", "sequence_start", "headrace_timing"),
            *(REMAINING_PARAMETER, CANCEL_PARAMETER, "triton_enable_empty_final_response"),
            *("triton_final_response", "headrace_code", "binary_data_output"),
        )
    ),
    WORD,
)
TENSOR_PARAMETERS = st.sampled_from(
    ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "classification")
)

TYPED = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "UINT64": "uint64_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@st.composite
def valid(draw: st.DrawFn) -> Request:
    """A valid request of one of the models."""
    model = draw(st.sampled_from(FUZZED))
    inputs = model.draw(np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
    arrays = {name: (array, datatype_of(array)) for name, array in inputs.items()}
    return messages.infer_request(model.name, arrays)


@st.composite
def spoilt(draw: st.DrawFn, prefix: str) -> Request:
    """A request with up to four things wrong, or merely unusual, with it. Its id starts like
    that, and differs from those of others, unless that is what is wrong."""
    request = draw(valid())
    request.id = f"{prefix}{draw(st.integers(0, 2**48))}"
    for change in draw(st.lists(st.sampled_from(CHANGES), max_size=4)):
        change(draw, request)
    return request


@st.composite
def body(draw: st.DrawFn, prefix: str) -> bytes:
    """A request as bytes, now and then with some of them changed."""
    data: bytes = draw(spoilt(prefix)).SerializeToString()
    if draw(st.integers(0, 9)) == 0:
        data = draw(damaged(data))
    return data


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """These bytes with something cut, flipped, doubled or put in."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(changed) - 1)))
        how = draw(st.integers(0, 4))
        if how == 0:
            del changed[at:]
        elif how == 1 and changed:
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif how == 2:
            changed[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif how == 3:
            changed[at:at] = changed[at : at + draw(st.integers(1, 64))]
        else:
            del changed[at : at + draw(st.integers(1, 16))]
    return bytes(changed)


# -- one thing after the other ------------------------------------------------------------------


def _model(draw: st.DrawFn, request: Request) -> None:
    request.model_name = draw(WORD)


def _version(draw: st.DrawFn, request: Request) -> None:
    request.model_version = draw(
        st.one_of(st.sampled_from(("1", "01", "2", "-1", "latest", "1" * 5_000)), WORD)
    )


def _id(draw: st.DrawFn, request: Request) -> None:
    request.id += draw(st.one_of(st.text(max_size=8), st.just("i" * 50_000)))


def _parameter(draw: st.DrawFn, request: Request) -> None:
    _set(draw, request.parameters[draw(PARAMETERS)])


def _rename(draw: st.DrawFn, request: Request) -> None:
    if request.inputs:
        draw(st.sampled_from(request.inputs)).name = draw(WORD)


def _retype(draw: st.DrawFn, request: Request) -> None:
    if request.inputs:
        datatype = draw(st.one_of(st.sampled_from((*DATATYPES, "fp32", "STRING")), WORD))
        draw(st.sampled_from(request.inputs)).datatype = datatype


def _reshape(draw: st.DrawFn, request: Request) -> None:
    if not request.inputs:
        return
    shape = draw(st.sampled_from(request.inputs)).shape
    how = draw(st.integers(0, 4))
    if how == 0 and shape:
        shape[draw(st.integers(0, len(shape) - 1))] = draw(INTEGERS)
    elif how == 1:
        shape.insert(draw(st.integers(0, len(shape))), draw(INTEGERS))
    elif how == 2 and shape:
        del shape[draw(st.integers(0, len(shape) - 1))]
    elif how == 3:
        shape.extend([draw(INTEGERS)] * draw(st.sampled_from((1, 31, 33, 5_000))))
    else:
        del shape[:]
        shape.extend(draw(st.lists(st.integers(0, 5), max_size=4)))


def _refill(draw: st.DrawFn, request: Request) -> None:
    """Other contents, in most cases of the right size."""
    raw = request.raw_input_contents
    if not raw:
        return
    at = draw(st.integers(0, len(raw) - 1))
    how = draw(st.integers(0, 4))
    if how < 2:
        size = len(raw[at])
        raw[at] = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).bytes(size)
    elif how == 2:
        raw[at] = raw[at][: draw(st.integers(0, 40))]
    elif how == 3:
        raw[at] += draw(st.binary(min_size=1, max_size=16))
    else:
        raw[at] = raw[at] * draw(st.sampled_from((2, 8, 500)))


def _count_raw(draw: st.DrawFn, request: Request) -> None:
    raw = request.raw_input_contents
    if len(raw) > 0 and draw(st.booleans()):
        del raw[draw(st.integers(0, len(raw) - 1))]
    else:
        raw.append(draw(st.binary(max_size=16)))


def _type_contents(draw: st.DrawFn, request: Request) -> None:
    """Typed contents in the place of raw ones, as long as these can be read."""
    for index, tensor in enumerate(request.inputs):
        if tensor.datatype not in TYPED or index >= len(request.raw_input_contents):
            continue
        try:
            array = decode_tensor(
                tensor.datatype, [*tensor.shape], request.raw_input_contents[index]
            )
        except ValueError:
            continue
        getattr(tensor.contents, TYPED[tensor.datatype]).extend(array.reshape(-1).tolist())
    if draw(st.integers(0, 4)):
        del request.raw_input_contents[:]


def _misplace(draw: st.DrawFn, request: Request) -> None:
    """Typed contents that belong nowhere."""
    if request.inputs:
        contents = draw(st.sampled_from(request.inputs)).contents
        how = draw(st.integers(0, 3))
        if how == 0:
            contents.fp32_contents.append(draw(st.floats(width=32)))
        elif how == 1:
            contents.int64_contents.append(draw(INTEGERS))
        elif how == 2:
            contents.uint_contents.append(draw(st.integers(0, 2**32 - 1)))
        else:
            contents.bytes_contents.append(draw(st.binary(max_size=8)))


def _count_inputs(draw: st.DrawFn, request: Request) -> None:
    inputs = request.inputs
    how = draw(st.integers(0, 3))
    if how == 0 and inputs:
        del inputs[draw(st.integers(0, len(inputs) - 1))]
    elif how == 1 and inputs:
        inputs.append(draw(st.sampled_from(inputs)))
    elif how == 2:
        inputs.add(name=draw(WORD), datatype="INT64", shape=[1])
    else:
        reordered = [*reversed(inputs)]
        del inputs[:]
        inputs.extend(reordered)


def _tensor_parameter(draw: st.DrawFn, request: Request) -> None:
    tensors: list[Tensor] = [*request.inputs, *request.outputs]
    if tensors:
        _set(draw, draw(st.sampled_from(tensors)).parameters[draw(TENSOR_PARAMETERS)])


def _ask(draw: st.DrawFn, request: Request) -> None:
    """Ask for outputs by name, as a rule by those that there are."""
    model = next((m for m in FUZZED if m.name == request.model_name), None)
    names = [*model.answer(model.draw(np.random.default_rng(0)))] if model else []
    for name in draw(st.lists(st.sampled_from(names) if names else WORD, max_size=3)):
        request.outputs.add(name=name)
    if draw(st.integers(0, 4)) == 0:
        request.outputs.add(name=draw(WORD))


def _set(draw: st.DrawFn, parameter: pb.InferParameter) -> None:
    how = draw(st.integers(0, 5))
    if how == 0:
        parameter.bool_param = draw(st.booleans())
    elif how == 1:
        parameter.int64_param = draw(INTEGERS)
    elif how == 2:
        parameter.string_param = draw(WORD)
    elif how == 3:
        parameter.double_param = draw(st.floats())
    elif how == 4:
        parameter.uint64_param = draw(st.integers(0, 2**64 - 1))


CHANGES = (
    *(_refill, _reshape, _type_contents, _ask, _parameter, _refill, _reshape, _type_contents, _ask),
    *(_model, _version, _id, _rename, _retype, _count_raw, _misplace, _count_inputs),
    *(_tensor_parameter, _parameter, _id),
)
"""Those first that leave most requests valid: Hypothesis favours what comes first."""
